// Prints what the types of `web/client` say of each event: the fields of payloads and acks, those that may be missing with
// a `?`, and the codes of errors.

import { fileURLToPath } from "node:url";
import ts from "typescript";

const file = fileURLToPath(new URL("../../web/client/events.d.ts", import.meta.url));
const program = ts.createProgram([file], { strict: true, noEmit: true, types: [] });
const checker = program.getTypeChecker();
const exported = checker.getExportsOfModule(checker.getSymbolAtLocation(program.getSourceFile(file)));
const typeOf = (name) => checker.getDeclaredTypeOfSymbol(exported.find((symbol) => symbol.name === name));
const shapes = {};

/** The fields of a type under this name, and those of what lies in them. */
function add(name, type) {
  const one = checker.getNonNullableType(type);
  if (checker.isArrayType(one)) return add(name, checker.getTypeArguments(one)[0]);
  if (!(one.flags & (ts.TypeFlags.Object | ts.TypeFlags.Intersection))) return;
  const fields = checker.getPropertiesOfType(one);
  shapes[name] = fields.map((field) => field.name + (field.flags & ts.SymbolFlags.Optional ? "?" : ""));
  for (const field of fields) add(`${name}.${field.name}`, checker.getTypeOfSymbol(field));
}

const parametersOf = (type) => checker.getNonNullableType(type).getCallSignatures()[0].parameters;

/** The parameters of every event of an interface. */
function* events(name) {
  for (const event of checker.getPropertiesOfType(typeOf(name))) yield [event.name, parametersOf(checker.getTypeOfSymbol(event))];
}

for (const [name, parameters] of events("ClientToServerEvents")) {
  shapes[`emit ${name}`] = [];
  for (const parameter of parameters) {
    const type = checker.getTypeOfSymbol(parameter);
    if (parameter.name !== "ack") {
      add(`emit ${name}`, type);
      continue;
    }
    for (const answer of checker.getTypeOfSymbol(parametersOf(type)[0]).types) {
      add(`${answer.getProperty("error") ? "refused" : "ack"} ${name}`, answer);
    }
  }
}
for (const [name, [payload]] of events("ServerToClientEvents")) add(`on ${name}`, checker.getTypeOfSymbol(payload));
console.log(JSON.stringify({ shapes, codes: typeOf("ErrorCode").types.map(({ value }) => value) }));
