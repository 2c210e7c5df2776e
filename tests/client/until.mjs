// node until.mjs TEXT SCRIPT: runs a script that never ends by itself and ends it one second after it
// printed TEXT. Fails if the text does not come within 30 seconds, or if the script ends before.
import { spawn } from "node:child_process";

const [text, script] = process.argv.slice(2);
const child = spawn(process.execPath, [script], { stdio: ["ignore", "pipe", "inherit"] });
const deadline = setTimeout(() => child.kill(), 30_000);
let output = "";
let seen = false;

child.stdout.setEncoding("utf8");
child.stdout.on("data", (chunk) => {
  process.stdout.write(chunk);
  output += chunk;
  if (!seen && output.includes(text)) {
    seen = true;
    clearTimeout(deadline);
    // What would come a second time comes within this second.
    setTimeout(() => child.kill(), 1_000);
  }
});

child.on("exit", (code) => {
  if (seen && code === null) return;
  console.error(seen ? `${script} ended by itself` : `${script} never printed: ${text}`);
  process.exitCode = 1;
});
