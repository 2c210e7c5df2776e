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
/// Bound of the question whether one that rested is still there: a part of what its asker waits.
const PING_TIMEOUT: Duration = Duration::from_millis(500);
/// What nobody used for so long, or was made so long ago, goes back to the driver's pool, which ends what it has had for long.
const RESTED: Duration = Duration::from_mins(1);
const OLD: Duration = Duration::from_mins(30);

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
    idle: Arc<Idle>,
    /// Longest wait of who asks.
    wait: Duration,
    /// What is set in each of the transactions that a pooler needs.
    set_local: Option<Arc<str>>,
}

/// Connections that nobody uses, the latest to answer last.
#[derive(Debug, Default)]
struct Idle(Mutex<Vec<Kept>>);

#[derive(Debug)]
struct Kept {
    connection: PoolConnection<Postgres>,
    /// When it was made, or came from the driver's pool.
    since: Instant,
    answered_at: Instant,
}

impl Idle {
    fn kept(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, connection: PoolConnection<Postgres>, since: Instant) {
        self.kept().push(Kept { connection, since, answered_at: Instant::now() });
    }

    /// The latest.
    fn take(&self) -> Option<Kept> {
        let mut kept = self.kept();
        let has_rested = |one: &Kept| one.answered_at.elapsed() > RESTED;
        let rested = kept.partition_point(has_rested);
        let rested: Vec<_> = kept.drain(..rested).collect();
        let latest = kept.pop();
        drop(kept);
        drop(rested);
        latest.filter(|latest| latest.since.elapsed() < OLD)
    }

    /// One is gone: so are the others, or they cost less to make again than to be waited for.
    fn close_all(&self) {
        // Not under the lock.
        let kept = mem::take(&mut *self.kept());
        for mut one in kept {
            one.connection.close_on_drop();
        }
    }

    fn len(&self) -> usize {
        self.kept().len()
    }
}

impl Kept {
    /// Whether it is still there. Not for the driver's pool to ask: that has a connection back only after its answer, and
    /// makes another one for who comes meanwhile.
    async fn answers(&mut self) -> bool {
        let answers = matches!(timeout(PING_TIMEOUT, self.connection.ping()).await, Ok(Ok(())));
        if !answers {
            self.connection.close_on_drop();
        }
        answers
    }
}

/// A connection of a [`Pool`], until it is dropped.
#[derive(Debug)]
pub struct Connection {
    held: Held,
    since: Instant,
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
            idle: Arc::default(),
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
        let rested = match self.idle.take() {
            Some(Kept { connection, since, answered_at }) if answered_at.elapsed() < FRESH => {
                let held = Held::Session(connection);
                return Ok(Connection { held, since, is_kept: true, _permit: permit });
            }
            rested => rested,
        };
        let pool = self.clone();
        let request = tokio::spawn(async move {
            let (held, since) = pool.rested_or_new(rested).await?;
            Ok(Connection { held, since, is_kept: false, _permit: permit })
        });
        // It outlasts who waits for it. What nobody waits for any more goes into the pool as it is dropped.
        request.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
    }

    /// This one, if it is still there.
    async fn rested_or_new(&self, rested: Option<Kept>) -> sqlx::Result<(Held, Instant)> {
        if let Some(mut rested) = rested {
            if rested.answers().await {
                return Ok((Held::Session(rested.connection), rested.since));
            }
            self.idle.close_all();
        }
        let held = open(&self.connections, self.set_local.as_deref()).await?;
        Ok((held, Instant::now()))
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
                drop(connection);
                self.idle.close_all();
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
            self.idle.put(session, connection.since);
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
        self.connections.num_idle() + self.idle.len()
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
