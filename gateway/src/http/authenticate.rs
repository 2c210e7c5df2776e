//! Who asks for a route, and whether they may.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::access::rights::{Action, Caller};
use crate::access::shown_tokens;
use crate::app::Gateway;
use crate::error::ClientError;
use crate::problem::Problem;

/// Lets only those callers to a route who may.
///
/// The caller stands among the request's extensions from here on.
pub async fn require(
    State((gateway, action)): State<(Arc<Gateway>, Action)>,
    mut request: Request,
    next: Next,
) -> Response {
    match authenticate(&gateway, &request, action) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => Problem::from(error).into_response(),
    }
}

fn authenticate(
    gateway: &Gateway,
    request: &Request,
    action: Action,
) -> Result<Caller, ClientError> {
    if gateway.config.is_keyed() && shown_tokens::is_in_url(request.uri()) {
        return Err(shown_tokens::misplaced());
    }
    let caller = gateway.config.caller(shown_tokens::bearer(request.headers()))?;
    caller.may(action).map(|()| caller)
}
