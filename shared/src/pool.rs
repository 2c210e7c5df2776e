//! Connections to Postgres, kept for those who come next.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Postgres, Transaction};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::database::{Database, answered};

/// Bound of a wait for a connection where somebody waits for the answer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bound of a statement on the server: a future that is dropped does not end its query.
const STATEMENT_TIMEOUT_MS: u32 = 10_000;

/// So many connections at most. Cheap to clone.
///
/// Whoever asks for one waits two seconds; to make one may take as long as the URL's `connect_timeout`. The driver's
/// pool gives both the same time and throws a connection away that is not made within it: on a machine that has
/// much to do, where it takes longer, there would never be one.
#[derive(Clone, Debug)]
pub struct Pool {
    connections: PgPool,
    /// Requests that outlast those who wait for them: as many as there may be connections, so that nobody's
    /// requests pile up while Postgres is away.
    lasting: Arc<Semaphore>,
    /// Longest wait of who asks.
    wait: Duration,
    /// What is set in each of the transactions that a pooler needs.
    set_local: Option<Arc<str>>,
}

/// A connection of a [`Pool`], until it is dropped.
#[derive(Debug)]
pub enum Connection {
    Session(PoolConnection<Postgres>),
    /// Through a pooler: what is asked for together is asked of one session, which is given back by the end of the
    /// transaction.
    Transaction(Transaction<'static, Postgres>),
}

impl Connection {
    /// The pool does not keep it.
    pub fn close_on_drop(&mut self) {
        if let Self::Session(connection) = self {
            connection.close_on_drop();
        }
    }
}

impl Deref for Connection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match self {
            Self::Session(connection) => connection,
            Self::Transaction(transaction) => transaction,
        }
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match self {
            Self::Session(connection) => connection,
            Self::Transaction(transaction) => transaction,
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
            lasting: Arc::new(Semaphore::new(connections as usize)),
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
        let Ok(lasting) = Arc::clone(&self.lasting).try_acquire_owned() else {
            return open(&self.connections, self.set_local.as_deref()).await;
        };
        let (connections, set_local) = (self.connections.clone(), self.set_local.clone());
        let request = tokio::spawn(async move {
            let connection = open(&connections, set_local.as_deref()).await;
            drop(lasting);
            connection
        });
        // What nobody waits for any more goes into the pool as it is dropped.
        request.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
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
        self.connections.num_idle()
    }

    /// How many there may be.
    pub fn max(&self) -> u32 {
        self.connections.options().get_max_connections()
    }
}

async fn open(connections: &PgPool, set_local: Option<&str>) -> sqlx::Result<Connection> {
    match set_local {
        None => connections.acquire().await.map(Connection::Session),
        // Boxed: it is large, and every read has this future in its own.
        Some(set_local) => Box::pin(begin(connections, set_local)).await,
    }
}

async fn begin(connections: &PgPool, set_local: &str) -> sqlx::Result<Connection> {
    // Not in one with what is set: if that fails in its midst, the driver does not know that it began.
    let mut transaction = answered(connections.begin_with("BEGIN READ ONLY")).await?;
    let set = sqlx::raw_sql(AssertSqlSafe(set_local.to_owned()));
    answered(set.execute(&mut *transaction)).await?;
    Ok(Connection::Transaction(transaction))
}
