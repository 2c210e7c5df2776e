// Makes the key pairs of a test: `node keys.mjs FOLDER` writes NAME.pem, private, and public.pem with all.

import { generateKeyPairSync } from "node:crypto";
import { writeFileSync } from "node:fs";

const [folder] = process.argv.slice(2);
const pairs = {
  rsa: generateKeyPairSync("rsa", { modulusLength: 2048 }),
  ec: generateKeyPairSync("ec", { namedCurve: "P-256" }),
  ed: generateKeyPairSync("ed25519"),
};
const pem = (key, type) => key.export({ type, format: "pem" });
for (const [name, { privateKey }] of Object.entries(pairs)) {
  writeFileSync(`${folder}/${name}.pem`, pem(privateKey, "pkcs8"));
}
const publics = Object.values(pairs).map(({ publicKey }) => pem(publicKey, "spki"));
writeFileSync(`${folder}/public.pem`, publics.join(""));
