//! Least privilege: the services work with roles that may do no more than they must.

use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use tests::Stack;
use url::Url;

const ROLES: &str = include_str!("../../../migrations/roles.sql");
const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// Every table and a column of it.
const TABLES: &str = "
    SELECT c.relname::text, min(a.attname::text)
    FROM pg_class c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND a.attidentity <> 'a'
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'
    GROUP BY c.relname";

async fn run(pool: &PgPool, sql: &str) -> sqlx::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.map(drop)
}

async fn is_refused(pool: &PgPool, sql: &str) {
    let Err(error) = run(pool, sql).await else { panic!("{sql} was taken") };
    let code = error.as_database_error().and_then(|error| error.code().map(String::from));
    assert_eq!(code.as_deref(), Some(INSUFFICIENT_PRIVILEGE), "{sql}: {error}");
}

fn url_as(stack: &Stack, user: &str) -> String {
    let mut url = Url::parse(stack.database_url()).unwrap();
    url.set_username(user).unwrap();
    url.into()
}

/// A user of one of the script's roles, with the owner's password.
async fn make_user(stack: &Stack, user: &str) {
    let url = Url::parse(stack.database_url()).unwrap();
    let password = url.password().unwrap_or_default();
    let sql = format!("CREATE ROLE {user} LOGIN PASSWORD '{password}' IN ROLE chat_{user}");
    run(&stack.pool(), &sql).await.unwrap();
}

/// A stack whose tables belong to the owner, and two users with the roles of the script.
async fn stack() -> (Stack, PgPool) {
    // What is answered over HTTP is stored then, however slow this machine is.
    let stack =
        Stack::builder().own_postgres().gateway_env("STORED_WAIT", "5s").env("SEARCH", "on");
    let stack = stack.services_stopped().start().await;
    let owner = stack.pool();
    // Before the tables are made, and once more.
    for sql in [ROLES, ROLES] {
        run(&owner, sql).await.unwrap();
    }
    make_user(&stack, "reader").await;
    make_user(&stack, "writer").await;
    stack.persister(0).start().await;
    stack.persister(0).terminate().await;
    stack.persister(0).set_env("DATABASE_URL", &url_as(&stack, "writer"));
    stack.gateway(0).set_env("DATABASE_URL", &url_as(&stack, "reader"));
    stack.start_services().await;
    (stack, owner)
}

/// By a gateway that may only read, with the index that its owner made; a persister that may not says so.
async fn a_search_is_answered(stack: &Stack) {
    let persister = stack.persister(0);
    tests::eventually(Duration::from_secs(30), "a line in the log", async || {
        persister.logs().contains("run `persister migrate` with SEARCH=on")
    })
    .await;
    let search = async || {
        let answer = stack.http().get(stack.url("/api/messages?q=hello")).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(search().await.0, 503);
    let owner = stack.database_url().parse().unwrap();
    persister::search::index::make_by_command(&owner).await.unwrap();
    assert_eq!(search().await.0, 200);
    let sequence = |right| format!(r#"{right} SELECT ON "Message_seq_seq" TO chat_reader"#);
    run(&stack.pool(), &sequence("REVOKE").replace(" TO ", " FROM ")).await.unwrap();
    let (status, problem) = search().await;
    assert_eq!(status, 503);
    assert!(problem.contains("migrations/roles.sql"), "{problem}");
    run(&stack.pool(), &sequence("GRANT")).await.unwrap();
}

#[tokio::test]
async fn the_gateway_works_with_a_role_that_may_only_read_and_the_persister_with_one_for_rows() {
    let (stack, owner) = stack().await;
    stack.node_test("rest.test.mjs", &[]).await;
    a_search_is_answered(&stack).await;
    run(&owner, r#"CREATE TABLE "Later" ("id" TEXT PRIMARY KEY)"#).await.unwrap();
    let pool = |user: &str| PgPoolOptions::new().connect_lazy(&url_as(&stack, user)).unwrap();
    let (reader, writer) = (pool("reader"), pool("writer"));
    let tables: Vec<(String, String)> = sqlx::query_as(TABLES).fetch_all(&owner).await.unwrap();
    assert!(tables.len() > 6, "{tables:?}");
    for (table, column) in &tables {
        run(&reader, &format!(r#"SELECT * FROM "{table}" LIMIT 1"#)).await.unwrap();
        is_refused(&reader, &format!(r#"INSERT INTO "{table}" DEFAULT VALUES"#)).await;
        is_refused(&reader, &format!(r#"UPDATE "{table}" SET "{column}" = "{column}""#)).await;
        is_refused(&reader, &format!(r#"DELETE FROM "{table}""#)).await;
        run(&writer, &format!(r#"UPDATE "{table}" SET "{column}" = "{column}" WHERE false"#))
            .await
            .unwrap();
        for pool in [&reader, &writer] {
            is_refused(pool, &format!(r#"TRUNCATE "{table}" CASCADE"#)).await;
            is_refused(pool, &format!(r#"ALTER TABLE "{table}" ADD COLUMN "x" TEXT"#)).await;
            is_refused(pool, &format!(r#"DROP TABLE "{table}" CASCADE"#)).await;
        }
    }
    for pool in [&reader, &writer] {
        is_refused(pool, r#"CREATE TABLE "Mine" ("id" TEXT)"#).await;
        is_refused(pool, "CREATE ROLE mine").await;
    }
}

#[tokio::test]
async fn a_persister_that_may_not_migrate_waits_for_the_owner_and_says_so() {
    let stack = Stack::builder().own_postgres().services_stopped().start().await;
    let owner = stack.pool();
    run(&owner, ROLES).await.unwrap();
    make_user(&stack, "writer").await;
    let persister = stack.persister(0);
    let url = stack.database_url().to_owned();
    persister.set_env("DATABASE_URL", &url_as(&stack, "writer"));
    persister.spawn();
    tests::eventually(Duration::from_secs(30), "a line in the log", async || {
        persister.logs().contains("run `persister migrate` as the one that owns them")
    })
    .await;
    let program = tokio::task::spawn_blocking(|| tests::program("persister")).await.unwrap();
    let mut migrate = tokio::process::Command::new(program);
    migrate.arg("migrate").env("DATABASE_URL", url).current_dir(std::env::temp_dir());
    assert!(migrate.status().await.unwrap().success());
    persister.ready().await;
}
