//! Connections to Postgres, kept for those who come next.

use std::io::ErrorKind;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection as _, Execute, FromRow, Postgres, SqlStr, Transaction};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::database::{Database, answered};

/// Bound of a wait for a connection where somebody waits for the answer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bound of a statement on the server: a future that is dropped does not end its query.
const STATEMENT_TIMEOUT_MS: u32 = 10_000;

/// A statement and its arguments.
pub type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// How long a connection that answered is taken for one that answers.
const FRESH: Duration = Duration::from_millis(100);

/// So many connections at most. Cheap to clone.
///
/// Whoever asks for one waits two seconds; to make one may take as long as the URL's `connect_timeout`. The driver's
/// pool gives both the same time and throws a connection away that is not made within it: on a machine that has
/// much to do, where it takes longer, there would never be one.
///
/// The driver's pool also asks Postgres before and behind each use whether the connection is still there: three
/// answers for one. What answered a moment ago is kept here, and used again without a question.
#[derive(Clone, Debug)]
pub struct Pool {
    connections: PgPool,
    /// One for each connection that there may be: who has one will get a connection, or is who makes it.
    permits: Arc<Semaphore>,
    fresh: Arc<Fresh>,
    /// Longest wait of who asks.
    wait: Duration,
    /// What is set in each of the transactions that a pooler needs.
    set_local: Option<Arc<str>>,
}

/// Connections that nobody uses, the latest to answer last, with the time when they did.
#[derive(Debug, Default)]
struct Fresh(Mutex<Vec<(PoolConnection<Postgres>, Instant)>>);

/// A connection that was kept.
enum Kept {
    Fresh(PoolConnection<Postgres>),
    /// It must be asked whether it is still there. Not by the driver's pool: that has a connection back only after a while,
    /// and meanwhile makes another one.
    Stale(PoolConnection<Postgres>),
}

impl Fresh {
    fn kept(&self) -> MutexGuard<'_, Vec<(PoolConnection<Postgres>, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, connection: PoolConnection<Postgres>) {
        self.kept().push((connection, Instant::now()));
    }

    /// The latest. If it is not fresh any more, the others go back to the driver's pool.
    fn take(&self) -> Option<Kept> {
        let mut kept = self.kept();
        let (connection, answered_at) = kept.pop()?;
        if answered_at.elapsed() < FRESH {
            return Some(Kept::Fresh(connection));
        }
        drop(kept);
        drop(self.take_all());
        Some(Kept::Stale(connection))
    }

    fn take_all(&self) -> Vec<(PoolConnection<Postgres>, Instant)> {
        mem::take(&mut *self.kept())
    }

    fn len(&self) -> usize {
        self.kept().len()
    }
}

/// A connection of a [`Pool`], until it is dropped.
#[derive(Debug)]
pub struct Connection {
    held: Held,
    /// Whether nobody asked if it is still there.
    is_kept: bool,
    /// Given back behind the connection.
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Held {
    Session(PoolConnection<Postgres>),
    /// Through a pooler: what is asked for together is asked of one session, which is given back by the end of the
    /// transaction.
    Transaction(Transaction<'static, Postgres>),
}

impl Connection {
    /// The pool does not keep it.
    pub fn close_on_drop(&mut self) {
        if let Held::Session(connection) = &mut self.held {
            connection.close_on_drop();
        }
    }
}

impl Deref for Connection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match &self.held {
            Held::Session(connection) => connection,
            Held::Transaction(transaction) => transaction,
        }
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match &mut self.held {
            Held::Session(connection) => connection,
            Held::Transaction(transaction) => transaction,
        }
    }
}

impl Pool {
    /// Connects when first used. Postgres lists the connections under the name of the application. `options` are
    /// parameters of the server that hold for them, beside a bound of each statement.
    pub fn new(
        database: &Database,
        application: &str,
        connections: u32,
        options: &[(&str, &str)],
    ) -> Self {
        let mut parameters = vec![("statement_timeout", STATEMENT_TIMEOUT_MS.to_string())];
        parameters.extend(options.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let set_local = database.set_local(&parameters);
        let connect = database.options.clone().application_name(application);
        let connect = if set_local.is_some() { connect } else { connect.options(parameters) };
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(database.connect_timeout.max(ACQUIRE_TIMEOUT));
        Self {
            connections: pool.connect_lazy_with(connect),
            permits: Arc::new(Semaphore::new(connections as usize)),
            fresh: Arc::default(),
            wait: ACQUIRE_TIMEOUT,
            set_local: set_local.map(Arc::from),
        }
    }

    /// The same, where nobody is kept waiting by a wait: for as long as it may take to make a connection.
    #[must_use]
    pub fn patient(self) -> Self {
        Self { wait: self.connections.options().get_acquire_timeout(), ..self }
    }

    /// One of the connections, until it is dropped.
    ///
    /// # Errors
    /// `PoolTimedOut` if there is none soon, and whatever Postgres has against it.
    pub async fn get(&self) -> sqlx::Result<Connection> {
        timeout(self.wait, self.request()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }

    async fn request(&self) -> sqlx::Result<Connection> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_| sqlx::Error::PoolClosed)?;
        let stale = match self.fresh.take() {
            Some(Kept::Fresh(connection)) => {
                let held = Held::Session(connection);
                return Ok(Connection { held, is_kept: true, _permit: permit });
            }
            Some(Kept::Stale(connection)) => Some(connection),
            None => None,
        };
        let (connections, set_local) = (self.connections.clone(), self.set_local.clone());
        let request = tokio::spawn(async move {
            let there = match stale {
                Some(connection) => still_there(connection).await,
                None => None,
            };
            let held = match there {
                Some(connection) => Held::Session(connection),
                None => open(&connections, set_local.as_deref()).await?,
            };
            Ok(Connection { held, is_kept: false, _permit: permit })
        });
        // It outlasts who waits for it. What nobody waits for any more goes into the pool as it is dropped.
        request.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
    }

    /// All rows of a statement, which is prepared for the next time. It reads, or may as well be done twice: it is asked
    /// once more if the connection was gone.
    ///
    /// # Errors
    /// As [`get`](Self::get), or that it took too long, or whatever Postgres has against it.
    pub async fn fetch_all<Row>(&self, query: Statement<'_>) -> sqlx::Result<Vec<Row>>
    where
        Row: for<'r> FromRow<'r, PgRow>,
    {
        self.read(query).await?.iter().map(Row::from_row).collect()
    }

    /// The same, of rows that are read where they lie.
    ///
    /// # Errors
    /// As [`fetch_all`](Self::fetch_all).
    pub async fn fetch_rows<Row: From<PgRow>>(
        &self,
        query: Statement<'_>,
    ) -> sqlx::Result<Vec<Row>> {
        Ok(self.read(query).await?.into_iter().map(Row::from).collect())
    }

    /// The row of a statement that has one at most.
    ///
    /// # Errors
    /// As [`fetch_all`](Self::fetch_all).
    pub async fn fetch_optional<Row>(&self, query: Statement<'_>) -> sqlx::Result<Option<Row>>
    where
        Row: for<'r> FromRow<'r, PgRow>,
    {
        self.read(query).await?.first().map(Row::from_row).transpose()
    }

    /// The row of a statement that has one.
    ///
    /// # Errors
    /// As [`fetch_all`](Self::fetch_all), or that there is none.
    pub async fn fetch_one<Row>(&self, query: Statement<'_>) -> sqlx::Result<Row>
    where
        Row: for<'r> FromRow<'r, PgRow>,
    {
        self.fetch_optional(query).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// Does what a statement says, and gives how many rows that changed.
    ///
    /// # Errors
    /// As [`fetch_all`](Self::fetch_all).
    pub async fn execute(&self, query: Statement<'_>) -> sqlx::Result<u64> {
        let mut connection = self.get().await?;
        let query = query.persistent(self.keeps_statements());
        let done = answered(query.execute(&mut *connection)).await?;
        self.keep(connection);
        Ok(done.rows_affected())
    }

    /// Once more on another connection where a kept one turns out to be gone: whoever asks whether it is there finds
    /// that out before.
    async fn read(&self, mut query: Statement<'_>) -> sqlx::Result<Vec<PgRow>> {
        let arguments = query.take_arguments().map_err(sqlx::Error::Encode)?.unwrap_or_default();
        let sql = query.sql();
        let mut connection = self.get().await?;
        let is_kept = connection.is_kept;
        match self.read_on(&mut connection, sql.clone(), arguments.clone()).await {
            Err(error) if is_kept && is_gone(&error) => {
                drop((connection, self.fresh.take_all()));
                connection = self.get().await?;
                let rows = self.read_on(&mut connection, sql, arguments).await?;
                self.keep(connection);
                Ok(rows)
            }
            Ok(rows) => {
                self.keep(connection);
                Ok(rows)
            }
            error => error,
        }
    }

    async fn read_on(
        &self,
        connection: &mut Connection,
        sql: SqlStr,
        arguments: PgArguments,
    ) -> sqlx::Result<Vec<PgRow>> {
        let query = sqlx::query_with(sql, arguments).persistent(self.keeps_statements());
        answered(query.fetch_all(&mut **connection)).await
    }

    /// For the next one, who need not ask whether it is still there: it has just answered.
    fn keep(&self, connection: Connection) {
        if let Held::Session(session) = connection.held {
            self.fresh.put(session);
        }
    }

    /// Whether statements that were prepared are there next time.
    pub fn keeps_statements(&self) -> bool {
        self.set_local.is_none()
    }

    /// How many there are now, used or not.
    pub fn size(&self) -> u32 {
        self.connections.size()
    }

    /// How many of them nobody uses.
    pub fn idle(&self) -> usize {
        self.connections.num_idle() + self.fresh.len()
    }

    /// How many there may be.
    pub fn max(&self) -> u32 {
        self.connections.options().get_max_connections()
    }
}

/// Whether the connection ended, by a cut or since Postgres did ("57P", operator intervention). A silent one may be there.
fn is_gone(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(error) => error.kind() != ErrorKind::TimedOut,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57P")),
        _ => false,
    }
}

/// The connection, if it answers.
async fn still_there(mut connection: PoolConnection<Postgres>) -> Option<PoolConnection<Postgres>> {
    if matches!(timeout(ACQUIRE_TIMEOUT, connection.ping()).await, Ok(Ok(()))) {
        return Some(connection);
    }
    connection.close_on_drop();
    None
}

async fn open(connections: &PgPool, set_local: Option<&str>) -> sqlx::Result<Held> {
    match set_local {
        None => connections.acquire().await.map(Held::Session),
        // Boxed: it is large, and every read has this future in its own.
        Some(set_local) => Box::pin(begin(connections, set_local)).await,
    }
}

async fn begin(connections: &PgPool, set_local: &str) -> sqlx::Result<Held> {
    // Not in one with what is set: if that fails in its midst, the driver does not know that it began.
    let mut transaction = answered(connections.begin_with("BEGIN READ ONLY")).await?;
    let set = sqlx::raw_sql(AssertSqlSafe(set_local.to_owned()));
    answered(set.execute(&mut *transaction)).await?;
    Ok(Held::Transaction(transaction))
}
