// validate.js SCHEMA TOPOLOGY...: containerlab's schema over topology files.
const Ajv = require("ajv"), formats = require("ajv-formats"), yaml = require("js-yaml");
const { readFileSync } = require("fs");

const [schema, ...topologies] = process.argv.slice(2);
const ajv = new Ajv({ strict: false, unicodeRegExp: true, allErrors: true });
(formats.default || formats)(ajv);
const validate = ajv.compile(JSON.parse(readFileSync(schema)));
let wrong = 0;
for (const topology of topologies) {
  if (!validate(yaml.load(readFileSync(topology, "utf8")))) {
    wrong += 1;
    for (const e of validate.errors) console.log(`${topology}: ${e.instancePath}: ${e.message}`);
  }
}
process.exit(wrong ? 1 : 0);
