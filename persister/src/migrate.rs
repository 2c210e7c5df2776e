//! Migrations, each on a connection of its own: a failed one keeps its advisory lock for as long as
//! the connection lives.

use std::time::{Duration, Instant};

use anyhow::Context;
use shared::database::{Database, Unusable};
use shared::lifecycle::{Backoff, Stop, pause};
use sqlx::migrate::{Migrate, MigrateError, Migration, Migrator};
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};

/// Everything in `migrations/`.
static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");

/// Oldest server whose SQL we use, as in `server_version_num`.
const OLDEST_SERVER: i32 = 140_000;

/// What failed, for the reader of the error.
const MIGRATING: &str = "migrating the database";

/// How long `persister migrate` waits for a Postgres that is just starting, as when a whole stack restarts.
pub const COMMAND_WAITS: Duration = Duration::from_secs(30);

/// Of Postgres, for a password that it refuses.
const INVALID_PASSWORD: &str = "28P01";

/// Pauses between tries while the database cannot be reached.
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often somebody who waits for a migration is told that it goes on.
pub const TELLS_EVERY: Duration = Duration::from_secs(5);

/// Migrations that write every row of a table, and the table.
const REWRITES: [(i64, &str); 1] = [(2, "Message")];

/// Where what is done is told, line by line.
pub type Tell = fn(&str);

async fn apply_all(database: &Database, tell: Tell) -> anyhow::Result<()> {
    let mut connection = connect(database).await?;
    let done = apply(&mut connection, database, tell).await;
    // Whatever happened: the end of the connection frees the lock.
    connection.close().await.ok();
    done
}

/// Brings the database up to date, for the command, and waits so long at most until it can be reached. Only that
/// is waited for: every other error ends it.
pub async fn run_within(database: &Database, within: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + within;
    let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
    loop {
        match apply_all(database, |line| println!("{line}")).await {
            Err(error) if is_away(&error) && Instant::now() < deadline => {
                tracing::warn!(
                    "the database cannot be migrated yet: {}",
                    shared::causes::told(error.as_ref())
                );
                tokio::time::sleep(backoff.pause()).await;
            }
            done => return done,
        }
    }
}

/// Brings the database up to date as soon as it can be reached. `None` if the stop came first.
pub async fn until_done(database: &Database, stop: &Stop) -> anyhow::Result<Option<()>> {
    let mut backoff = Backoff::new(PAUSE, LONGEST_PAUSE);
    loop {
        match apply_all(database, |line| tracing::info!("{line}")).await {
            Ok(()) => return Ok(Some(())),
            Err(error) if is_final(&error) => return Err(error),
            Err(error) => tracing::warn!(
                "the database cannot be migrated yet: {}",
                shared::causes::told(error.as_ref())
            ),
        }
        if !pause(stop, backoff.pause()).await {
            return Ok(None);
        }
    }
}

/// Prints a line for each migration.
pub async fn print_status(database: &Database) -> anyhow::Result<()> {
    let mut connection = connect(database).await?;
    let applied = applied(&mut connection).await;
    connection.close().await.ok();
    let applied = applied?;
    for migration in MIGRATIONS.iter() {
        let state = if applied.contains(&migration.version) { "applied" } else { "pending" };
        println!("{state}  {}  {}", migration.version, migration.description);
    }
    Ok(())
}

async fn connect(database: &Database) -> anyhow::Result<PgConnection> {
    // A migration may take its time; sqlx would warn of it with its whole text.
    let options = database.options.clone().disable_statement_logging();
    let connecting = PgConnection::connect_with(&options);
    let connected = tokio::time::timeout(database.connect_timeout, connecting).await;
    let connected = connected.map_err(anyhow::Error::from).and_then(|done| Ok(done?));
    connected.map_err(|error| {
        if let Some(unusable) = error.downcast_ref().and_then(Unusable::told_by) {
            return unusable.into();
        }
        let what = if is_wrong_password(&error) {
            let role = database.options.get_username();
            format!(
                "Postgres at {database} refuses the password of {role} (DATABASE_URL). In an existing \
                 database it is changed by ALTER ROLE {role} PASSWORD '…', not by a setting"
            )
        } else {
            format!("Postgres at {database} cannot be reached (DATABASE_URL)")
        };
        error.context(what)
    })
}

fn is_wrong_password(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
    error.and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == INVALID_PASSWORD)
}

/// Whether Postgres does not answer, starts or stops: nothing that it says of us or of the database.
fn is_away(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<sqlx::Error>() {
        Some(error) => crate::store::errors::is_passing(error),
        None => error.is::<tokio::time::error::Elapsed>(),
    }
}

async fn apply(
    connection: &mut PgConnection,
    database: &Database,
    tell: Tell,
) -> anyhow::Result<()> {
    if let Some(unusable) = database.look(connection).await? {
        anyhow::bail!(unusable);
    }
    let version: i32 = sqlx::query_scalar("SELECT current_setting('server_version_num')::int")
        .fetch_one(&mut *connection)
        .await?;
    if version < OLDEST_SERVER {
        anyhow::bail!(TooOld(version / 10_000));
    }
    if !may_migrate(connection, &database.schema).await? {
        return is_migrated(connection).await;
    }
    make_schema(connection, &database.schema).await?;
    let applied = applied(connection).await?;
    let pending: Vec<_> = MIGRATIONS.iter().filter(|one| !applied.contains(&one.version)).collect();
    for migration in &pending {
        apply_one(connection, database, migration, tell).await?;
    }
    // Also where nothing is to be done: what was applied must be what we know.
    MIGRATIONS.run_direct(None, &mut *connection, false).await.context(MIGRATING)?;
    if pending.is_empty() {
        tell(&format!("the database is up to date: all {} migrations are applied", applied.len()));
    }
    Ok(())
}

/// Applies it and says so, before, meanwhile and after.
async fn apply_one(
    connection: &mut PgConnection,
    database: &Database,
    migration: &Migration,
    tell: Tell,
) -> anyhow::Result<()> {
    let name = format!("{} {}", migration.version, migration.description);
    let rows = rows_to_write(connection, database, migration.version).await?;
    tell(
        &rows.map_or_else(|| format!("applying {name}"), |rows| format!("applying {name}: {rows}")),
    );
    let started = Instant::now();
    let mut look = tokio::time::interval(TELLS_EVERY);
    look.tick().await;
    let mut applying =
        std::pin::pin!(MIGRATIONS.run_direct(Some(migration.version), &mut *connection, false));
    loop {
        tokio::select! {
            done = &mut applying => break done.context(MIGRATING)?,
            _ = look.tick() => {
                tell(&format!("still applying {name}: {} s", started.elapsed().as_secs()));
            }
        }
    }
    tell(&format!("applied {name} in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

/// What a migration does to rows that are there, in words.
async fn rows_to_write(
    connection: &mut PgConnection,
    database: &Database,
    version: i64,
) -> anyhow::Result<Option<String>> {
    let Some((_, table)) = REWRITES.iter().find(|(of, _)| *of == version) else { return Ok(None) };
    // The names hold no quotes: ours is fixed, the schema's was checked when the URL was parsed.
    let name = format!("\"{}\".\"{table}\"", database.schema);
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(&name)
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(None);
    }
    let count = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {name}"));
    let count: i64 = sqlx::query_scalar(count).fetch_one(&mut *connection).await?;
    let words = || format!("it writes the {count} rows of \"{table}\", which is locked meanwhile");
    Ok((count > 0).then(words))
}

/// Whether this role may make tables; one with fewer rights finds them made.
async fn may_migrate(connection: &mut PgConnection, schema: &str) -> sqlx::Result<bool> {
    let may: Option<bool> = sqlx::query_scalar(
        "SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $1",
    )
    .bind(schema)
    .fetch_optional(connection)
    .await?;
    Ok(may.unwrap_or(true))
}

async fn is_migrated(connection: &mut PgConnection) -> anyhow::Result<()> {
    let applied = applied(connection).await?;
    let missing = MIGRATIONS.iter().any(|migration| !applied.contains(&migration.version));
    anyhow::ensure!(
        !missing,
        "this role may not change tables: run `persister migrate` as the one that owns them"
    );
    Ok(())
}

/// The schema that the URL names, as Prisma makes it.
async fn make_schema(connection: &mut PgConnection, schema: &str) -> sqlx::Result<()> {
    let exists: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)")
            .bind(schema)
            .fetch_one(&mut *connection)
            .await?;
    if !exists {
        // The name was checked when the URL was parsed; it holds no quote.
        let statement = format!("CREATE SCHEMA IF NOT EXISTS \"{schema}\"");
        connection.execute(sqlx::AssertSqlSafe(statement)).await?;
    }
    Ok(())
}

async fn applied(connection: &mut PgConnection) -> anyhow::Result<Vec<i64>> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass('_sqlx_migrations') IS NOT NULL")
        .fetch_one(&mut *connection)
        .await?;
    if !exists {
        return Ok(Vec::new());
    }
    let applied = connection.list_applied_migrations("_sqlx_migrations").await?;
    Ok(applied.into_iter().map(|migration| migration.version).collect())
}

#[derive(Debug, thiserror::Error)]
#[error("Postgres {0} is too old, 14 or newer is needed")]
struct TooOld(i32);

/// Errors that waiting does not mend: they end the process with their text.
fn is_final(error: &anyhow::Error) -> bool {
    if error.is::<TooOld>() || error.is::<Unusable>() {
        return true;
    }
    match error.downcast_ref::<MigrateError>() {
        Some(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
            matches!(error, sqlx::Error::Database(_)) && !crate::store::errors::is_passing(error)
        }
        Some(_) => true,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_services_mean_the_newest_migration() {
        let newest = MIGRATIONS.iter().map(|migration| migration.version).max();
        assert_eq!(newest, Some(shared::SCHEMA_VERSION));
    }

    #[test]
    fn every_migration_that_writes_rows_tells_how_many() {
        let writes = |migration: &Migration| {
            let sql = migration.sql.as_str();
            let table = sql.split("\nUPDATE \"").nth(1)?.split('"').next()?;
            Some((migration.version, table.to_owned()))
        };
        let writes: Vec<_> = MIGRATIONS.iter().filter_map(writes).collect();
        assert_eq!(writes, REWRITES.map(|(version, table)| (version, table.to_owned())));
    }
}
