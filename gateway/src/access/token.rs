//! JSON Web Tokens (RFC 7519) of agents and integrators: which keys they may be signed with, and
//! what is read from them.
//!
//! A key pins its algorithm; what a token says of itself only chooses among the keys. Several keys
//! may hold at once, so that they can be changed without a cut: add the new one everywhere, sign
//! with it, remove the old one once its tokens have expired.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::access::rights::{Caller, Role};
use crate::error::{ClientError, ErrorCode};

/// How far the clock of the signer of tokens may be off: for so long a token counts beyond its `exp`
/// and before its `nbf`.
pub const CLOCK_SKEW: Duration = Duration::from_secs(5);
/// A shorter secret can be guessed: RFC 7518, section 3.2.
const SECRET_BYTES_MIN: usize = 32;
/// Longer names are no names; every message id is derived from it.
const SUBJECT_BYTES_MAX: usize = 256;
/// A public key of RSA with 2,048 bits takes 270 bytes; one of half the size, which the library
/// would refuse at every token, 140.
const RSA_BYTES_MIN: usize = 256;
/// An uncompressed point of P-256, the only curve of ES256.
const P256_POINT_BYTES: usize = 65;

/// What a token must say.
#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    role: TokenRole,
    /// `NumericDate`: seconds, possibly with a fraction.
    exp: f64,
}

/// Roles that a token can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TokenRole {
    /// A support agent.
    Admin,
    /// A program that reads and answers.
    Integrator,
}

/// `JWT_SECRET`: secrets of HS256.
#[derive(Clone, Default)]
pub struct Secrets(Vec<String>);

/// `JWT_PUBLIC_KEY`: public keys of RS256, ES256 or `EdDSA`.
#[derive(Clone, Default)]
pub struct PublicKeys(Vec<Key>);

/// The keys that tokens may be signed with.
#[derive(Clone)]
pub struct Keys {
    accepted: Vec<Key>,
    signing: Option<EncodingKey>,
    audience: Option<String>,
}

#[derive(Clone)]
struct Key {
    algorithm: Algorithm,
    verifying: DecodingKey,
}

impl Keys {
    /// All keys together; `audience` must stand in the `aud` of every token.
    pub fn new(secrets: &Secrets, public: PublicKeys, audience: Option<String>) -> Self {
        let secret = |secret: &String| Key {
            algorithm: Algorithm::HS256,
            verifying: DecodingKey::from_secret(secret.as_bytes()),
        };
        let accepted = secrets.0.iter().map(secret).chain(public.0).collect();
        let signing = secrets.0.first().map(|first| EncodingKey::from_secret(first.as_bytes()));
        Self { accepted, signing, audience }
    }

    /// Whether there is none: open mode.
    pub fn is_empty(&self) -> bool {
        self.accepted.is_empty()
    }

    /// Who shows this token; the error says what is wrong with it.
    pub fn caller(&self, token: &str) -> Result<Caller, ClientError> {
        let claims = self.verify(token).map_err(|error| unauthorized(&error))?;
        let caller =
            caller(claims).ok_or_else(|| refused("the token's sub or exp cannot be used"))?;
        // The library counts in whole seconds: by ours it may be over already.
        if caller.has_expired() {
            return Err(unauthorized(&ErrorKind::ExpiredSignature.into()));
        }
        Ok(caller)
    }

    fn verify(&self, token: &str) -> Result<Claims, Error> {
        let algorithm = jsonwebtoken::decode_header(token)?.alg;
        let mut last = ErrorKind::InvalidAlgorithm.into();
        for key in self.accepted.iter().filter(|key| key.algorithm == algorithm) {
            match jsonwebtoken::decode(token, &key.verifying, &self.validation(algorithm)) {
                Ok(token) => return Ok(token.claims),
                // Another key may fit.
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => last = error,
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = CLOCK_SKEW.as_secs();
        validation.validate_nbf = true;
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            validation.set_required_spec_claims(&["exp", "sub", "aud"]);
        } else {
            validation.validate_aud = false;
            validation.set_required_spec_claims(&["exp", "sub"]);
        }
        validation
    }

    /// A token for somebody, signed with the first secret.
    pub fn sign(&self, subject: &str, role: TokenRole, ttl: Duration) -> anyhow::Result<String> {
        use anyhow::Context;
        let key = self.signing.as_ref().context(
            "JWT_SECRET: not set; tokens for JWT_PUBLIC_KEY are signed where its private key is",
        )?;
        anyhow::ensure!(
            (1..=SUBJECT_BYTES_MAX).contains(&subject.len()),
            "--sub: must have 1 to {SUBJECT_BYTES_MAX} bytes"
        );
        let end = OffsetDateTime::now_utc() + ttl;
        let mut claims =
            serde_json::json!({ "sub": subject, "role": role, "exp": end.unix_timestamp() });
        if let Some(audience) = &self.audience {
            claims["aud"] = audience.as_str().into();
        }
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, key)?)
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.accepted.len())
    }
}

fn caller(claims: Claims) -> Option<Caller> {
    if !(1..=SUBJECT_BYTES_MAX).contains(&claims.sub.len()) {
        return None;
    }
    // A fraction of a second does not matter, and what is out of range is refused.
    #[allow(clippy::cast_possible_truncation)]
    let end = OffsetDateTime::from_unix_timestamp(claims.exp as i64).ok()?;
    let role = match claims.role {
        TokenRole::Admin => Role::Admin,
        TokenRole::Integrator => Role::Integrator,
    };
    let expires_at = Some(end.checked_add(CLOCK_SKEW.try_into().ok()?)?);
    Some(Caller { role, subject: Some(claims.sub.into()), expires_at })
}

fn refused(text: &'static str) -> ClientError {
    ClientError::new(ErrorCode::Unauthorized, text)
}

/// What is wrong with a token, as far as it helps its honest owner.
fn unauthorized(error: &Error) -> ClientError {
    refused(match error.kind() {
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidAudience => "the token is meant for another audience",
        ErrorKind::InvalidAlgorithm => "the token is signed with another algorithm",
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::Json(_) => {
            "the token must have sub, exp and role (admin or integrator)"
        }
        _ => "the token is not valid",
    })
}

impl FromStr for Secrets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let secrets: Vec<String> = text.split(',').map(|secret| secret.trim().to_owned()).collect();
        if secrets.iter().any(|secret| secret.len() < SECRET_BYTES_MIN) {
            return Err(format!(
                "each secret must have at least {SECRET_BYTES_MIN} bytes, several are separated by commas; \
                 openssl rand -base64 48 makes one"
            ));
        }
        Ok(Self(secrets))
    }
}

impl FromStr for PublicKeys {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const NO_KEY: &str =
            "must be public keys in PEM (RSA, P-256 or Ed25519), or a file with them";
        let pem = if text.contains("-----BEGIN") {
            // Environments that take no line breaks have them escaped.
            text.replace("\\n", "\n")
        } else {
            std::fs::read_to_string(text).map_err(|_| NO_KEY)?
        };
        let blocks: Vec<&str> = pem.split_inclusive("-----END PUBLIC KEY-----").collect();
        let keys: Option<Vec<Key>> = blocks
            .iter()
            .filter(|block| !block.trim().is_empty())
            .map(|pem| public_key(pem))
            .collect();
        keys.filter(|keys| !keys.is_empty()).map(Self).ok_or(NO_KEY)
    }
}

/// The key in a PEM block, whose kind says the algorithm.
fn public_key(pem: &str) -> Option<Key> {
    let pem = pem.trim().as_bytes();
    let bytes = |key: &DecodingKey| key.try_get_as_bytes().map_or(0, <[u8]>::len);
    let rsa = || DecodingKey::from_rsa_pem(pem).ok().filter(|key| bytes(key) >= RSA_BYTES_MIN);
    let p256 = || DecodingKey::from_ec_pem(pem).ok().filter(|key| bytes(key) == P256_POINT_BYTES);
    let ed25519 = || DecodingKey::from_ed_pem(pem).ok();
    let with = |algorithm| move |verifying| Key { algorithm, verifying };
    rsa()
        .map(with(Algorithm::RS256))
        .or_else(|| p256().map(with(Algorithm::ES256)))
        .or_else(|| ed25519().map(with(Algorithm::EdDSA)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "the first secret of thirty-two bytes or more";
    const SECOND: &str = "the second secret also of thirty-two bytes";

    fn keys(secrets: &str, audience: Option<&str>) -> Keys {
        let secrets = secrets.parse().unwrap();
        Keys::new(&secrets, PublicKeys::default(), audience.map(str::to_owned))
    }

    fn signed(claims: &serde_json::Value) -> String {
        let key = EncodingKey::from_secret(FIRST.as_bytes());
        jsonwebtoken::encode(&Header::default(), claims, &key).unwrap()
    }

    #[test]
    fn a_signed_token_says_who_comes_and_until_when() {
        let keys = keys(FIRST, None);
        let hour = Duration::from_hours(1);
        let token = keys.sign("alice", TokenRole::Admin, hour).unwrap();
        let caller = keys.caller(&token).unwrap();
        assert_eq!((caller.role, caller.subject.as_deref()), (Role::Admin, Some("alice")));
        let left = caller.expires_at.unwrap() - OffsetDateTime::now_utc();
        assert!(left > hour && left <= hour + CLOCK_SKEW, "{left}");
        assert!(keys.sign("", TokenRole::Admin, hour).is_err());
    }

    #[test]
    fn keys_are_changed_without_a_cut() {
        let hour = Duration::from_hours(1);
        let old = keys(FIRST, None).sign("bot", TokenRole::Integrator, hour).unwrap();
        let both = keys(&format!("{SECOND}, {FIRST}"), None);
        assert!(both.caller(&old).is_ok());
        let new = both.sign("bot", TokenRole::Integrator, hour).unwrap();
        assert!(keys(SECOND, None).caller(&new).is_ok());
        assert!(keys(SECOND, None).caller(&old).is_err());
    }

    #[test]
    fn what_a_token_must_say_is_demanded() {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let whole = serde_json::json!({ "sub": "alice", "role": "admin", "exp": now + 60 });
        assert!(keys(FIRST, None).caller(&signed(&whole)).is_ok());
        let faults: [(&str, serde_json::Value); 8] = [
            ("sub", serde_json::Value::Null),
            ("sub", "".into()),
            ("role", "visitor".into()),
            ("role", serde_json::Value::Null),
            ("exp", serde_json::Value::Null),
            ("exp", (now - 60).into()),
            ("exp", "tomorrow".into()),
            ("nbf", (now + 60).into()),
        ];
        for (claim, value) in faults {
            let mut claims = whole.clone();
            claims[claim] = value;
            let error = keys(FIRST, None).caller(&signed(&claims)).unwrap_err();
            assert_eq!(error.code, ErrorCode::Unauthorized, "{claims}");
        }
    }

    #[test]
    fn an_audience_is_demanded_where_one_is_set() {
        let keys = keys(FIRST, Some("chat"));
        let own = keys.sign("alice", TokenRole::Admin, Duration::from_hours(1)).unwrap();
        assert!(keys.caller(&own).is_ok());
        let exp = OffsetDateTime::now_utc().unix_timestamp() + 60;
        let mut claims = serde_json::json!({ "sub": "alice", "role": "admin", "exp": exp });
        assert!(keys.caller(&signed(&claims)).is_err());
        claims["aud"] = "shop".into();
        assert!(keys.caller(&signed(&claims)).is_err());
    }

    #[test]
    fn short_secrets_and_what_is_no_key_are_refused() {
        assert!("short".parse::<Secrets>().is_err());
        assert!(format!("{FIRST},short").parse::<Secrets>().is_err());
        for text in ["", "-----BEGIN PUBLIC KEY-----", "/no/such/file"] {
            assert!(text.parse::<PublicKeys>().is_err(), "{text}");
        }
        assert!(!format!("{:?}", keys(FIRST, None)).contains("first"));
    }
}
