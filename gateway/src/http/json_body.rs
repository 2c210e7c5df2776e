//! A request's body that is JSON, in the forms that Express reads it in: packed, with a mark in front, by any type
//! that ends so.

use std::io::Read as _;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use serde::de::DeserializeOwned;

use crate::error::{ClientError, ErrorCode};
use crate::fields::{self, Fields, Object};
use crate::problem::Problem;

/// Longest wait for a body; its size has a limit of its own.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// What some editors and libraries of Windows write before a text.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Reads what a body of at most so many bytes says, packed or not.
pub async fn read<T: DeserializeOwned + Fields>(
    request: Request,
    bytes_max: usize,
) -> Result<T, Problem> {
    check_type(request.headers())?;
    let is_packed = is_packed(request.headers())?;
    let body = match tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => body,
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            return Err(too_large().into());
        }
        Ok(Err(_)) => return Err(invalid("the body did not come as a whole").into()),
        Err(_) => {
            return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come"));
        }
    };
    let body = if is_packed { unpacked(body, bytes_max).await? } else { body };
    Ok(parsed(&body)?)
}

fn parsed<T: DeserializeOwned + Fields>(body: &[u8]) -> Result<T, ClientError> {
    let json = std::str::from_utf8(body).map_err(|_| invalid("the body is not UTF-8"))?;
    let json = json.strip_prefix(BYTE_ORDER_MARK).unwrap_or(json);
    match serde_json::from_str(json) {
        Ok(Object(value)) => Ok(value),
        Err(_) => Err(invalid(fields::mistake("the body", json, T::FIELDS))),
    }
}

/// A packed body may be a thousand times as large when it is unpacked: no more of it is than may be.
async fn unpacked(packed: Bytes, bytes_max: usize) -> Result<Bytes, ClientError> {
    let unpack = move || {
        let mut body = Vec::new();
        let most = bytes_max as u64 + 1;
        MultiGzDecoder::new(&*packed).take(most).read_to_end(&mut body).map(|_| body)
    };
    // It takes milliseconds in which nobody else would be served.
    let unpacking = tokio::task::spawn_blocking(unpack).await;
    match unpacking.map_err(|_| ClientError::overloaded())? {
        Ok(body) if body.len() > bytes_max => Err(too_large()),
        Ok(body) => Ok(body.into()),
        Err(_) => Err(invalid("the body is not gzip, as its Content-Encoding says")),
    }
}

/// `application/json`, or another type that is JSON, in UTF-8.
fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let given = text(headers, header::CONTENT_TYPE).unwrap_or_default().to_ascii_lowercase();
    let (kind, parameters) = given.split_once(';').unwrap_or((&given, ""));
    let subtype = kind.trim().strip_prefix("application/").unwrap_or_default();
    if subtype != "json" && !subtype.ends_with("+json") {
        return Err(unsupported("Content-Type: must be application/json"));
    }
    let charset = parameters.split(';').find_map(|it| it.trim().strip_prefix("charset="));
    match charset.map(|charset| charset.trim_matches('"')) {
        None | Some("utf-8" | "utf8") => Ok(()),
        Some(_) => Err(unsupported("Content-Type: the charset must be utf-8")),
    }
}

fn is_packed(headers: &HeaderMap) -> Result<bool, Problem> {
    let mut given = headers.get_all(header::CONTENT_ENCODING).iter();
    let encoding = given.next().map(|value| value.to_str().unwrap_or("?").trim());
    match encoding.map(str::to_ascii_lowercase).as_deref() {
        _ if given.next().is_some() => {}
        None | Some("" | "identity") => return Ok(false),
        Some("gzip" | "x-gzip") => return Ok(true),
        Some(_) => {}
    }
    Err(unsupported("Content-Encoding: must be gzip, if there is any"))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn unsupported(text: &'static str) -> Problem {
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text)
}

fn too_large() -> ClientError {
    ClientError::new(ErrorCode::TooLarge, "the body is larger than MAX_PAYLOAD_BYTES")
}

fn invalid(text: impl Into<std::borrow::Cow<'static, str>>) -> ClientError {
    ClientError::new(ErrorCode::InvalidPayload, text)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use axum::body::Body;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::fields::{Field, Kind};

    #[derive(Debug, serde::Deserialize)]
    struct Said {
        content: String,
    }

    impl Fields for Said {
        const FIELDS: &'static [Field] = &[Field::required("content", Kind::Text)];
    }

    async fn said(headers: &[(&str, &str)], body: Vec<u8>) -> Result<String, Problem> {
        let mut request = Request::post("/").header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body)).unwrap();
        read::<Said>(request, 10_000).await.map(|said| said.content)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    #[tokio::test]
    async fn a_body_is_read_packed_or_not_and_with_a_mark_or_not() {
        let plain = br#"{"content":"hi"}"#.to_vec();
        let marked = "\u{feff}{\"content\":\"hi\"}".as_bytes().to_vec();
        for encoding in ["", "identity", "Identity"] {
            for body in [&plain, &marked] {
                let said = said(&[("content-encoding", encoding)], body.clone()).await;
                assert_eq!(said.unwrap(), "hi");
            }
        }
        for encoding in ["gzip", "GZIP", "x-gzip"] {
            for body in [&plain, &marked] {
                assert_eq!(
                    said(&[("content-encoding", encoding)], gzip(body)).await.unwrap(),
                    "hi"
                );
            }
        }
        let in_two = [gzip(br#"{"content":"#), gzip(br#""hi"}"#)].concat();
        assert_eq!(said(&[("content-encoding", "gzip")], in_two).await.unwrap(), "hi");
    }

    #[tokio::test]
    async fn a_bomb_is_too_large_and_what_is_not_gzip_is_wrong() {
        let gzip_header = [("content-encoding", "gzip")];
        let bomb = gzip(&vec![b' '; 5_000_000]);
        assert!(bomb.len() < 10_000);
        let cut = gzip(br#"{"content":"hi"}"#)[..20].to_vec();
        let many = gzip(b"").repeat(400);
        for (body, status) in [
            (bomb, 413),
            (gzip(&[b' '; 10_001]), 413),
            (cut, 400),
            (b"{}".to_vec(), 400),
            (Vec::new(), 400),
            (many, 400),
        ] {
            assert_eq!(said(&gzip_header, body).await.unwrap_err().status, status);
        }
        for encoding in ["br", "deflate", "gzip, gzip", "zstd"] {
            let refused = said(&[("content-encoding", encoding)], b"{}".to_vec()).await;
            assert_eq!(refused.unwrap_err().status, 415, "{encoding}");
        }
        let twice = [("content-encoding", "gzip"), ("content-encoding", "gzip")];
        assert_eq!(said(&twice, gzip(b"{}")).await.unwrap_err().status, 415);
    }

    #[test]
    fn a_type_must_be_json_in_utf_8() {
        let check = |kind: &str| {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind.parse().unwrap())]);
            check_type(&headers).is_ok()
        };
        for kind in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/vnd.api+json",
            "application/json;charset=\"utf-8\"",
        ] {
            assert!(check(kind), "{kind}");
        }
        for kind in [
            "",
            "text/json",
            "application/jsonp",
            "application/json; charset=latin1",
            "application/x-www-form-urlencoded",
        ] {
            assert!(!check(kind), "{kind}");
        }
    }
}
