//! What is asked for over HTTP, by a front end or a program, and by operators.

pub mod all_chats;
pub mod authenticate;
pub mod chats;
pub mod etag;
pub mod feed;
pub mod json_body;
pub mod json_stream;
pub mod openapi;
pub mod ops;
pub mod pagination;
pub mod rate_limits;
pub mod readiness;
pub mod routes;
pub mod search;
pub mod try_page;
pub mod writes;
