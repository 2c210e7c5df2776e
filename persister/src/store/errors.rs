//! What an error of Postgres means: whether waiting may help.

/// Whether waiting may help: no connection, no resources, operator intervention, system error.
pub fn is_passing(error: &sqlx::Error) -> bool {
    error.as_database_error().is_none()
        || is_of_class(error, &["08", "25", "40", "53", "55", "57", "58"])
}

/// Whether waiting may help, or the same on another connection, where a batch is refused; what is left
/// is the fault of a record or of the tables. Also passing is what no record can be blamed for: a login that
/// is not valid any more, a faulty configuration, a damaged table.
pub fn may_pass(error: &sqlx::Error) -> bool {
    is_passing(error) || is_of_class(error, &["0A", "26", "28", "F0", "XX"])
}

/// Whether the SQLSTATE of an error is of one of these classes.
pub fn is_of_class(error: &sqlx::Error, classes: &[&str]) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| classes.iter().any(|class| code.starts_with(class)))
}
