//! `DATABASE_URL` as Prisma writes it, the connections to it, and what both services ask for.
//!
//! Parameters of Prisma's PostgreSQL connector
//! (<https://www.prisma.io/docs/orm/overview/databases/postgresql>) are honoured or named in a
//! warning; sqlx alone would ignore them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use time::PrimitiveDateTime;
use url::Url;

use crate::message::SessionHead;
use crate::timestamp::Timestamp;

/// Bound of one try to connect unless the URL says otherwise; Prisma's default.
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_PORT: u16 = 5432;
/// The schema that a connection uses without being told.
const DEFAULT_SCHEMA: &str = "public";

/// Bound of a wait for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bound of a statement on the server: a future that is dropped does not end its query.
const STATEMENT_TIMEOUT_MS: u32 = 10_000;
/// Bound of a statement as seen from here: a cut network answers nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

/// A session and the extent of what is said in it, at one moment.
const EXTENT: &str = r#"
    SELECT s."id", s."sessionId", s."ip", s."userAgent", s."createdAt", said."count", said."last"
    FROM "ChatSession" s
    CROSS JOIN LATERAL (
        SELECT count(*) AS "count", coalesce(max(m."seq"), -1) AS "last"
        FROM "Message" m WHERE m."chatSessionId" = s."id"
    ) said
    WHERE s."sessionId" = $1"#;

/// Where the database is and how to talk to it. Shows no credentials.
#[derive(Clone)]
pub struct Database {
    /// For sqlx, with the schema as `search_path`.
    pub options: PgConnectOptions,
    /// The schema that holds the tables.
    pub schema: String,
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

    fn apply(&mut self, key: &str, value: &str) -> Result<(), InvalidDatabaseUrl> {
        let unusable = || InvalidDatabaseUrl::Parameter(key.to_owned());
        let number = || value.parse::<u32>().map_err(|_| unusable());
        let options = self.options.clone();
        match key {
            "schema" => self.schema = schema(value).ok_or_else(unusable)?,
            "connect_timeout" => self.connect_timeout = timeout(number()?),
            "connection_limit" => self.connection_limit = Some(number()?.max(1)),
            "sslmode" => self.options = options.ssl_mode(value.parse().map_err(|_| unusable())?),
            "sslrootcert" | "sslcert" => self.options = options.ssl_root_cert(value),
            "sslaccept" if value == "strict" => {
                self.options = options.ssl_mode(PgSslMode::VerifyFull);
            }
            "application_name" => self.options = options.application_name(value),
            "host" => self.options = options.host(value),
            // A pooler in transaction mode cannot keep prepared statements.
            "pgbouncer" if value == "true" => self.options = options.statement_cache_capacity(0),
            "statement_cache_size" => {
                self.options = options.statement_cache_capacity(number()? as usize);
            }
            // Our own bounds and the defaults of the driver hold for these.
            "sslaccept" | "pgbouncer" | "pool_timeout" | "socket_timeout" => {}
            other => self.unknown_parameters.push(other.to_owned()),
        }
        Ok(())
    }
}

impl FromStr for Database {
    type Err = InvalidDatabaseUrl;

    fn from_str(text: &str) -> Result<Self, InvalidDatabaseUrl> {
        let url = Url::parse(text).map_err(|_| InvalidDatabaseUrl::NotAUrl)?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(InvalidDatabaseUrl::NotAUrl);
        }
        let mut database = Self {
            options: server(&url)?,
            schema: DEFAULT_SCHEMA.to_owned(),
            connect_timeout: DEFAULT_CONNECT_TIMEOUT,
            connection_limit: None,
            unknown_parameters: Vec::new(),
        };
        for (key, value) in url.query_pairs() {
            database.apply(&key, &value)?;
        }
        if database.schema != DEFAULT_SCHEMA {
            let search_path = format!("\"{}\"", database.schema);
            database.options = database.options.options([("search_path", search_path)]);
        }
        Ok(database)
    }
}

/// Host, user and database of the URL.
fn server(url: &Url) -> Result<PgConnectOptions, InvalidDatabaseUrl> {
    let name = decoded(url.path().trim_start_matches('/'))?;
    if name.is_empty() {
        return Err(InvalidDatabaseUrl::NoDatabase);
    }
    let mut options = PgConnectOptions::new_without_pgpass()
        .host(url.host_str().unwrap_or("localhost").trim_matches(['[', ']']))
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
    // A form pair is decoded the same way, but for `+`.
    let pair = format!("x={}", part.replace('+', "%2B").replace('&', "%26").replace(';', "%3B"));
    let mut pairs = url::form_urlencoded::parse(pair.as_bytes());
    pairs.next().map(|(_, value)| value.into_owned()).ok_or(InvalidDatabaseUrl::NotAUrl)
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

/// Prepares a pool of connections; connects when first used. Postgres lists them under the name of the
/// application. `options` are parameters of the server that hold for them, beside a bound of each statement.
pub fn pool(
    database: &Database,
    application: &str,
    connections: u32,
    options: &[(&str, &str)],
) -> PgPool {
    let connect = database
        .options
        .clone()
        .application_name(application)
        .options([("statement_timeout", STATEMENT_TIMEOUT_MS.to_string())])
        .options(options.iter().copied());
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_lazy_with(connect)
}

/// Bounds the wait for an answer.
pub async fn answered<T>(query: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
    tokio::time::timeout(ANSWER_TIMEOUT, query).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// A session as it is stored.
#[derive(Debug, sqlx::FromRow)]
#[sqlx(rename_all = "camelCase")]
pub struct StoredSession {
    pub id: String,
    /// What clients call it.
    pub session_id: String,
    pub ip: Option<String>,
    pub user_agent: Option<String>,
    /// When it was opened.
    pub created_at: PrimitiveDateTime,
}

impl StoredSession {
    /// As answers have it.
    pub fn to_head(&self) -> SessionHead<'_> {
        SessionHead {
            id: &self.id,
            session_id: &self.session_id,
            ip: self.ip.as_deref(),
            user_agent: self.user_agent.as_deref(),
            created_at: Timestamp::from_column(self.created_at),
        }
    }
}

/// A session, and what is said in it at one moment.
#[derive(Debug, sqlx::FromRow)]
pub struct Extent {
    #[sqlx(flatten)]
    pub session: StoredSession,
    pub count: i64,
    /// `seq` of the last of them; -1 without any.
    pub last: i64,
}

/// A session and the extent of what is said in it, at one moment, if it is stored.
pub async fn extent(pool: &PgPool, session_id: &str) -> sqlx::Result<Option<Extent>> {
    let query = sqlx::query_as(EXTENT).bind(session_id.to_owned());
    answered(query.fetch_optional(pool)).await
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
        assert_eq!(database.options.get_options(), None);
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
