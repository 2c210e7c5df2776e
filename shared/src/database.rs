//! `DATABASE_URL` as Prisma writes it, the connections to it, and what both services ask for.
//!
//! Parameters of Prisma's PostgreSQL connector
//! (<https://www.prisma.io/docs/orm/overview/databases/postgresql>) are honoured or named in a
//! warning; sqlx alone would ignore them.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use url::Url;

use crate::settings::Switch;

/// Bound of one try to connect unless the URL says otherwise; Prisma's default.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_PORT: u16 = 5432;
/// The schema of Prisma's tables where the URL names none.
const DEFAULT_SCHEMA: &str = "public";

/// How Postgres, or the way to it, was found: the encoding, where tables are looked for, and whether those of ours
/// are not there but in the schema of this role, where earlier releases made them.
const FOUND: &str = "
    SELECT current_setting('server_encoding'), current_setting('search_path'), current_user::text,
           to_regclass('_sqlx_migrations') IS NULL
               AND to_regclass(quote_ident(current_user) || '._sqlx_migrations') IS NOT NULL";

/// Bound of a statement as seen from here: a cut network answers nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

/// Where the database is and how to talk to it. Shows no credentials.
#[derive(Clone)]
pub struct Database {
    /// For sqlx, with the schema as `search_path`.
    pub options: PgConnectOptions,
    /// The schema that holds the tables.
    pub schema: String,
    /// Whether the URL says so.
    names_schema: bool,
    /// What is asked is a pooler that gives each transaction another session of Postgres.
    pub through_pooler: bool,
    /// Bound of one try to connect.
    pub connect_timeout: Duration,
    /// `connection_limit` of the URL.
    pub connection_limit: Option<u32>,
    /// Parameters that mean nothing here.
    pub unknown_parameters: Vec<String>,
}

/// Why a `DATABASE_URL` cannot be used. Never repeats the URL, which may hold a password.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidDatabaseUrl {
    /// Not a URL, or of another kind.
    #[error(
        "must be postgresql://user:password@host:port/database; encode special characters of the password as %XX"
    )]
    NotAUrl,
    #[error("names no database: postgresql://user:password@host:port/database")]
    NoDatabase,
    /// A parameter's value makes no sense.
    #[error("parameter {0} has a value that cannot be used")]
    Parameter(String),
    /// A file that a parameter names is not there.
    #[error("parameter {0} names a file that cannot be read")]
    File(String),
    #[error("names several hosts: give the primary, or what stands for it")]
    SeveralHosts,
    /// Prisma's client certificate.
    #[error(
        "parameter sslidentity cannot be used: give the certificate and its key as PEM files in sslcert and sslkey"
    )]
    Identity,
    /// Of a pooler.
    #[error("parameter options has no effect through a pooler (pgbouncer=true): leave it away")]
    OptionsThroughPooler,
}

/// What waiting does not mend. Each is one line, with the cure.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unusable {
    #[error(
        "DATABASE_URL: the encoding of this database is {0}, which cannot hold every text: dump it, make another one \
         by CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and restore it there"
    )]
    Encoding(String),
    /// It does not say so, and takes the URL for that of Postgres.
    #[error(
        "DATABASE_URL: a pooler answers here, which keeps no session: a gateway needs the parameter pgbouncer=true, a \
         persister the URL of Postgres itself (DIRECT_URL)"
    )]
    UnnamedPooler,
    #[error(
        "DATABASE_URL: the pooler must have pool_mode = transaction; in statement mode nothing can be read at one moment"
    )]
    StatementPooler,
    /// Where earlier releases made the tables unless the URL named a schema other than `public`.
    #[error(
        "DATABASE_URL: the tables of this service are in the schema {0}, where an earlier release made them: add \
         schema={0}, or schema=public for those of Prisma"
    )]
    OtherSchema(String),
}

impl Unusable {
    /// What an error of Postgres, or of what answers in its place, says of the way to it.
    pub fn told_by(error: &sqlx::Error) -> Option<Self> {
        let text = error.as_database_error()?.message();
        if text.starts_with("unsupported startup parameter") {
            Some(Self::UnnamedPooler)
        } else {
            text.contains("statement pooling mode").then_some(Self::StatementPooler)
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (host, port) = (self.options.get_host(), self.options.get_port());
        write!(f, "{host}:{port}/{}", self.options.get_database().unwrap_or_default())
    }
}

impl Database {
    /// Warns of each parameter that was ignored.
    pub fn warn_of_unknown_parameters(&self) {
        for parameter in &self.unknown_parameters {
            tracing::warn!(parameter, "DATABASE_URL: this parameter is unknown here and ignored");
        }
    }

    /// What is wrong with what is found there, if anything is.
    pub async fn look(&self, connection: &mut PgConnection) -> sqlx::Result<Option<Unusable>> {
        type Found = (String, String, String, bool);
        let query = sqlx::query_as(FOUND).persistent(false);
        let (encoding, search_path, user, is_elsewhere): Found =
            answered(query.fetch_one(connection)).await?;
        Ok(if encoding != "UTF8" {
            Some(Unusable::Encoding(encoding))
        } else if search_path.trim_matches('"') != self.schema {
            // A pooler may be told to pass over what it cannot keep, and so does not refuse it.
            Some(Unusable::UnnamedPooler)
        } else {
            (is_elsewhere && !self.names_schema).then_some(Unusable::OtherSchema(user))
        })
    }

    /// What sets the schema and these parameters of the server for a transaction, where each needs that: a pooler keeps
    /// nothing of a session.
    pub fn set_local(&self, parameters: &[(&str, String)]) -> Option<String> {
        let schema = &self.schema;
        let set = parameters.iter().map(|(name, value)| format!("; SET LOCAL {name} = '{value}'"));
        let set: String = set.collect();
        self.through_pooler.then(|| format!("SET LOCAL search_path = \"{schema}\"{set}"))
    }

    fn apply(&mut self, key: &str, value: &str, keys: &[String]) -> Result<(), InvalidDatabaseUrl> {
        let unusable = || InvalidDatabaseUrl::Parameter(key.to_owned());
        let number = || value.parse::<u32>().map_err(|_| unusable());
        let file = || {
            let is_there = std::fs::File::open(value).is_ok();
            is_there.then_some(value).ok_or_else(|| InvalidDatabaseUrl::File(key.to_owned()))
        };
        let options = self.options.clone();
        match key {
            "schema" => {
                self.schema = schema(value).ok_or_else(unusable)?;
                self.names_schema = true;
            }
            "connect_timeout" => self.connect_timeout = timeout(number()?),
            "connection_limit" => self.connection_limit = Some(number()?.max(1)),
            "sslmode" => self.options = options.ssl_mode(ssl_mode(value).ok_or_else(unusable)?),
            "ssl" => self.options = options.ssl_mode(ssl(value).ok_or_else(unusable)?),
            // Of libpq and node-postgres beside a key; of Prisma the authority's.
            "sslcert" if keys.iter().any(|key| key == "sslkey") => {
                self.options = options.ssl_client_cert(file()?);
            }
            "sslkey" => self.options = options.ssl_client_key(file()?),
            "sslrootcert" | "sslcert" => self.options = options.ssl_root_cert(file()?),
            "sslaccept" if value == "strict" => {
                self.options = options.ssl_mode(PgSslMode::VerifyFull);
            }
            "sslidentity" => return Err(InvalidDatabaseUrl::Identity),
            "application_name" => self.options = options.application_name(value),
            "host" if value.contains(',') => return Err(InvalidDatabaseUrl::SeveralHosts),
            "host" => self.options = options.host(value),
            "port" => self.options = options.port(value.parse().map_err(|_| unusable())?),
            "user" => self.options = options.username(value),
            "password" => self.options = options.password(value),
            "options" if keys.iter().any(|key| key == "pgbouncer") => {
                return Err(InvalidDatabaseUrl::OptionsThroughPooler);
            }
            "options" => {
                self.options = options.options(server_options(value).ok_or_else(unusable)?);
            }
            "pgbouncer" => {
                let Switch(through_pooler) = value.parse().map_err(|_| unusable())?;
                self.through_pooler = through_pooler;
            }
            "statement_cache_size" => {
                self.options = options.statement_cache_capacity(number()? as usize);
            }
            // Our own bounds and the defaults of the driver hold for these.
            "sslaccept" | "uselibpqcompat" | "pool_timeout" | "socket_timeout" => {}
            other => self.unknown_parameters.push(other.to_owned()),
        }
        Ok(())
    }
}

impl FromStr for Database {
    type Err = InvalidDatabaseUrl;

    fn from_str(text: &str) -> Result<Self, InvalidDatabaseUrl> {
        let url = Url::parse(text).map_err(|_| not_a_url(text))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(InvalidDatabaseUrl::NotAUrl);
        }
        let mut database = Self {
            options: server(&url)?,
            schema: DEFAULT_SCHEMA.to_owned(),
            names_schema: false,
            through_pooler: false,
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            connection_limit: None,
            unknown_parameters: Vec::new(),
        };
        let keys: Vec<_> = url.query_pairs().map(|(key, _)| key.into_owned()).collect();
        for (key, value) in url.query_pairs() {
            database.apply(&key, &value, &keys)?;
        }
        // As libpq: an authority that is named is asked for.
        if keys.iter().any(|key| key == "sslrootcert")
            && matches!(database.options.get_ssl_mode(), PgSslMode::Require)
            && !url.query_pairs().any(|(_, value)| value == NO_VERIFY)
        {
            database.options = database.options.ssl_mode(PgSslMode::VerifyCa);
        }
        database.options = if database.through_pooler {
            // It takes no parameters of the server but its own few, and no statement that is prepared.
            database.options.extra_float_digits(None).statement_cache_capacity(0)
        } else {
            // Also where the default is meant: a role may have a schema of its own name, which comes first.
            let search_path = format!("\"{}\"", database.schema);
            database.options.options([("search_path", search_path)])
        };
        Ok(database)
    }
}

/// Of node-postgres: encrypted, whoever answers. What it means for Prisma too, and for us, is `require`.
const NO_VERIFY: &str = "no-verify";

fn ssl_mode(value: &str) -> Option<PgSslMode> {
    if value == NO_VERIFY { Some(PgSslMode::Require) } else { value.parse().ok() }
}

/// `ssl` of node-postgres.
fn ssl(value: &str) -> Option<PgSslMode> {
    match value {
        "true" | "1" => Some(PgSslMode::Require),
        "false" | "0" => Some(PgSslMode::Disable),
        value => ssl_mode(value),
    }
}

/// Parameters of the server as libpq's `options` has them: `-c name=value`, `--name=value`.
fn server_options(text: &str) -> Option<Vec<(String, String)>> {
    let mut words = text.split_whitespace();
    let mut options = Vec::new();
    while let Some(word) = words.next() {
        let pair = match word {
            "-c" => words.next()?,
            word => word.strip_prefix("-c").or_else(|| word.strip_prefix("--"))?,
        };
        let (name, value) = pair.split_once('=')?;
        options.push((name.to_owned(), value.to_owned()));
    }
    Some(options)
}

/// A list of hosts with ports is no URL for anybody but libpq.
fn not_a_url(text: &str) -> InvalidDatabaseUrl {
    let authority = text.split_once("://").map(|(_, rest)| rest.split('/').next());
    let host = authority.flatten().and_then(|authority| authority.rsplit('@').next());
    if host.is_some_and(|host| host.contains(',')) {
        InvalidDatabaseUrl::SeveralHosts
    } else {
        InvalidDatabaseUrl::NotAUrl
    }
}

/// Host, user and database of the URL.
fn server(url: &Url) -> Result<PgConnectOptions, InvalidDatabaseUrl> {
    let name = decoded(url.path().trim_start_matches('/'))?;
    if name.is_empty() {
        return Err(InvalidDatabaseUrl::NoDatabase);
    }
    let host = decoded(url.host_str().unwrap_or_default())?;
    if host.contains(',') {
        return Err(InvalidDatabaseUrl::SeveralHosts);
    }
    let host = if host.is_empty() { "localhost" } else { host.trim_matches(['[', ']']) };
    let mut options = PgConnectOptions::new_without_pgpass()
        .host(host)
        .port(url.port().unwrap_or(DEFAULT_PORT))
        .database(&name);
    if !url.username().is_empty() {
        options = options.username(&decoded(url.username())?);
    }
    if let Some(password) = url.password() {
        options = options.password(&decoded(password)?);
    }
    Ok(options)
}

/// A part of a URL with its %XX escapes resolved.
fn decoded(part: &str) -> Result<String, InvalidDatabaseUrl> {
    let decoded = percent_decode_str(part).decode_utf8();
    decoded.map(Cow::into_owned).map_err(|_| InvalidDatabaseUrl::NotAUrl)
}

/// A schema name that needs no escaping within double quotes.
fn schema(name: &str) -> Option<String> {
    let plain = name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '$'));
    (plain && !name.is_empty()).then(|| name.to_owned())
}

/// Prisma's rule: 0 is no bound. Ours is long, not absent.
fn timeout(seconds: u32) -> Duration {
    const LONG: u64 = 300;
    if seconds == 0 { Duration::from_secs(LONG) } else { Duration::from_secs(seconds.into()) }
}

/// Bounds the wait for an answer.
pub async fn answered<T>(query: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    let silent = || {
        let after = ANSWER_TIMEOUT.as_secs();
        io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {after} s"))
    };
    tokio::time::timeout(ANSWER_TIMEOUT, query).await.unwrap_or_else(|_| Err(silent().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_urls_are_read() {
        let url = "postgresql://username:pass%40word@localhost:5433/chatbot_db?schema=public&connect_timeout=10";
        let database: Database = url.parse().unwrap();
        assert_eq!(database.to_string(), "localhost:5433/chatbot_db");
        assert_eq!(database.connect_timeout, Duration::from_secs(10));
        assert_eq!(database.schema, "public");
        assert_eq!(database.options.get_options(), Some("-c search_path=\"public\""));
        assert_eq!(database.options.get_username(), "username");
        let cloud: Database =
            "postgresql://user:pass@db.example.com:5432/database?sslmode=require".parse().unwrap();
        assert!(matches!(cloud.options.get_ssl_mode(), PgSslMode::Require));
    }

    #[test]
    fn another_schema_becomes_the_search_path() {
        let database: Database = "postgres://localhost/db?schema=Chat".parse().unwrap();
        assert_eq!(database.options.get_options(), Some("-c search_path=\"Chat\""));
    }

    fn parsed(rest: &str) -> Result<Database, InvalidDatabaseUrl> {
        format!("postgresql://{rest}").parse()
    }

    #[test]
    fn a_schema_is_asked_for_also_where_it_is_the_default() {
        for url in ["localhost/db", "localhost/db?schema=public"] {
            let options = parsed(url).unwrap().options;
            assert_eq!(options.get_options(), Some("-c search_path=\"public\""), "{url}");
        }
    }

    #[test]
    fn a_pooler_is_given_no_parameters_of_the_server() {
        let pooled = parsed("localhost/db?schema=Chat&pgbouncer=true").unwrap();
        assert_eq!(pooled.options.get_options(), None);
        let set = pooled.set_local(&[("statement_timeout", "7".into())]);
        let wanted = "SET LOCAL search_path = \"Chat\"; SET LOCAL statement_timeout = '7'";
        assert_eq!(set.as_deref(), Some(wanted));
        assert_eq!(parsed("localhost/db?pgbouncer=false").unwrap().set_local(&[]), None);
        let refused = parsed("localhost/db?options=-c%20a%3Db&pgbouncer=true").unwrap_err();
        assert_eq!(refused, InvalidDatabaseUrl::OptionsThroughPooler);
    }

    #[test]
    fn ssl_is_what_other_clients_of_postgres_mean_by_it() {
        let mode = |query: &str| {
            let database = parsed(&format!("localhost/db?{query}"));
            database.map(|database| format!("{:?}", database.options.get_ssl_mode()))
        };
        for (query, wanted) in [
            ("sslmode=no-verify", "Require"),
            ("sslmode=require", "Require"),
            ("sslmode=disable", "Disable"),
            ("ssl=true", "Require"),
            ("ssl=1", "Require"),
            ("ssl=no-verify", "Require"),
            ("ssl=0", "Disable"),
            ("sslmode=require&sslaccept=strict", "VerifyFull"),
            ("sslmode=require&sslrootcert=Cargo.toml", "VerifyCa"),
            ("sslmode=no-verify&sslrootcert=Cargo.toml", "Require"),
            ("sslmode=require&sslcert=Cargo.toml", "Require"),
            ("sslmode=verify-full&sslcert=Cargo.toml&sslkey=Cargo.toml", "VerifyFull"),
            ("uselibpqcompat=true&sslmode=verify-ca", "VerifyCa"),
        ] {
            assert_eq!(mode(query).as_deref(), Ok(wanted), "{query}");
        }
        let parameter = |name: &str| Err(InvalidDatabaseUrl::Parameter(name.into()));
        assert_eq!(mode("sslmode=no_verify"), parameter("sslmode"));
        assert_eq!(mode("ssl=maybe"), parameter("ssl"));
        assert_eq!(
            mode("sslrootcert=/nowhere"),
            Err(InvalidDatabaseUrl::File("sslrootcert".into()))
        );
        assert_eq!(mode("sslidentity=client.p12"), Err(InvalidDatabaseUrl::Identity));
    }

    #[test]
    fn every_part_may_have_escapes() {
        let database = parsed("a%40b:c%2Fd@%2Fvar%2Frun%2Fpostgresql/my%20db").unwrap();
        assert_eq!(database.options.get_username(), "a@b");
        assert_eq!(database.options.get_host(), "/var/run/postgresql");
        assert_eq!(database.options.get_database(), Some("my db"));
        let elsewhere = parsed("/db?host=%2Ftmp&port=5433&user=a%26b&password=c").unwrap().options;
        assert_eq!((elsewhere.get_host(), elsewhere.get_port()), ("/tmp", 5433));
        assert_eq!(elsewhere.get_username(), "a&b");
        assert_eq!(parsed("u:%ff@localhost/db").unwrap_err(), InvalidDatabaseUrl::NotAUrl);
        for url in ["one,two/db", "u:p@one:1,two:2/db", "localhost/db?host=one,two"] {
            assert_eq!(parsed(url).unwrap_err(), InvalidDatabaseUrl::SeveralHosts, "{url}");
        }
        let options = parsed("localhost/db?options=-c%20a%3Db%20--c%3Dd").unwrap().options;
        assert_eq!(options.get_options(), Some("-c a=b -c c=d -c search_path=\"public\""));
    }

    #[test]
    fn unknown_parameters_are_named_and_bad_ones_refused() {
        let database: Database =
            "postgres://localhost/db?foo=1&connection_limit=7".parse().unwrap();
        assert_eq!(database.unknown_parameters, ["foo"]);
        assert_eq!(database.connection_limit, Some(7));
        let bad = |url: &str| url.parse::<Database>().unwrap_err();
        assert_eq!(
            bad("postgres://localhost/db?schema=a\"b"),
            InvalidDatabaseUrl::Parameter("schema".into())
        );
        assert_eq!(bad("postgres://localhost"), InvalidDatabaseUrl::NoDatabase);
        assert_eq!(bad("mysql://localhost/db"), InvalidDatabaseUrl::NotAUrl);
        assert_eq!(bad("nonsense"), InvalidDatabaseUrl::NotAUrl);
    }

    #[test]
    fn no_secret_shows() {
        let database: Database = "postgres://user:secret@localhost/db".parse().unwrap();
        assert!(!format!("{database} {database:?}").contains("secret"));
    }
}
