// Tokens as somebody else would sign them, right and wrong.

import { constants, createHmac, sign } from "node:crypto";
import { readFileSync } from "node:fs";

const { KEYS_FOLDER, JWT_SECRET } = process.env;

export const pem = (name) => readFileSync(`${KEYS_FOLDER}/${name}.pem`, "utf8");
const [first] = JWT_SECRET.split(",");

const base64 = (value) => Buffer.from(value).toString("base64url");
const hmac = (hash, secret) => (data) => createHmac(hash, secret).update(data).digest();

/** How each algorithm signs. */
export const SIGNERS = {
  HS256: hmac("sha256", first),
  HS512: hmac("sha512", first),
  RS256: (data) => sign("sha256", data, pem("rsa")),
  RS512: (data) => sign("sha512", data, pem("rsa")),
  PS256: (data) => sign("sha256", data, { key: pem("rsa"), padding: constants.RSA_PKCS1_PSS_PADDING, saltLength: 32 }),
  ES256: (data) => sign("sha256", data, { key: pem("ec"), dsaEncoding: "ieee-p1363" }),
  EdDSA: (data) => sign(null, data, pem("ed")),
  none: () => Buffer.alloc(0),
};

/** Seconds from now on. */
export const inSeconds = (seconds) => Math.floor(Date.now() / 1_000) + seconds;

/** A token of an admin that holds for an hour, unless said otherwise. */
export function token({ alg = "HS256", signer = SIGNERS[alg], ...claims } = {}) {
  const payload = { sub: "alice", role: "admin", exp: inSeconds(3_600), ...claims };
  const data = `${base64(JSON.stringify({ alg, typ: "JWT" }))}.${base64(JSON.stringify(payload))}`;
  return `${data}.${signer(Buffer.from(data)).toString("base64url")}`;
}

/** Signs with a secret that is none of the gateway's; with the public key, for one, which anybody may have. */
export const hmacWith = (secret) => hmac("sha256", secret);
