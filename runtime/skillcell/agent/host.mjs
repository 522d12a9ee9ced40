// A JavaScript function as an entrypoint: loaded as ESM or CommonJS, called with (input, ctx), its values sent as output events.
//
//   node host.mjs SCRIPT FUNCTION DEADLINE_NS ARGS…
//
// The rules are those of functions.py: what is returned or yielded must be JSON, what is not is refused with its place in the
// value; stdout stays the Skill's; an uncaught error prints its stack without this file's frames and ends with exit code 1.

import { mkdirSync, openSync, readFileSync, writeSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const [script, name, deadlineNs, ...args] = process.argv.slice(2);
const started = process.hrtime.bigint();
const env = process.env;
const outputDir = env.SKILLCELL_OUTPUT_DIR ?? '/output';
const events = openSync(env.SKILLCELL_EVENTS, 'w');
const here = fileURLToPath(import.meta.url);
const LIMIT = 8 * 1024 * 1024;
const LEVELS = ['debug', 'info', 'warning', 'error'];

process.argv.splice(1, process.argv.length - 1, script, ...args);

// Where in a value JSON ends; undefined when nowhere. Values may be deep or circular, so this keeps its own stack.
function fault(root, label) {
  const waiting = [[root, label, null]];
  while (waiting.length > 0) {
    const [value, place, above] = waiting.pop();
    if (value === null || typeof value === 'string' || typeof value === 'boolean') {
      if (typeof value === 'string' && /\p{Surrogate}/u.test(value)) return `${place} is text with a lone surrogate`;
    } else if (typeof value === 'number') {
      if (!Number.isFinite(value)) return `${place} is ${value}`;
    } else if (typeof value === 'object') {
      for (let link = above; link !== null; link = link.above) {
        if (link.value === value) return `${place} contains itself`;
      }
      const depth = above === null ? 1 : above.depth + 1;
      if (depth > 900) return `${place} is nested more than 900 deep`;
      if (value instanceof Map || value instanceof Set || ArrayBuffer.isView(value) || value instanceof Promise) {
        return `${place} is a ${value.constructor.name}`;
      }
      if (typeof value.toJSON === 'function') {
        waiting.push([value.toJSON(), place, { value, above, depth }]);
        continue;
      }
      const next = { value, above, depth };
      if (Array.isArray(value)) value.forEach((item, index) => waiting.push([item, `${place}[${index}]`, next]));
      else {
        for (const [key, item] of Object.entries(value)) {
          if (item !== undefined) waiting.push([item, `${place}.${key}`, next]);
        }
      }
    } else {
      return `${place} is ${value === undefined ? 'undefined' : `a ${typeof value}`}`;
    }
  }
  return undefined;
}

function emit(event, value, label) {
  const wrong = fault(value, label);
  if (wrong !== undefined) throw new TypeError(`${wrong}, which is not JSON`);
  const line = Buffer.from(JSON.stringify(event) + '\n');
  if (line.length > LIMIT) throw new RangeError(`${label}: ${line.length} bytes of JSON are over the limit of ${LIMIT}`);
  for (let at = 0; at < line.length; ) at += writeSync(events, line, at);
}

const ctx = {
  workspace: env.SKILLCELL_WORKSPACE ?? '/workspace',
  skillDir: env.SKILLCELL_SKILL_DIR ?? '/skill',
  outputDir,
  executionId: env.SKILLCELL_EXECUTION_ID ?? '',
  skill: env.SKILLCELL_SKILL ?? '',
  // Seconds left before the call is ended.
  get deadline() {
    return Math.max(0, Number(BigInt(deadlineNs) - (process.hrtime.bigint() - started)) / 1e9);
  },
  log(message, level = 'info', fields = {}) {
    if (!LEVELS.includes(level)) throw new RangeError(`level: ${level} is not one of ${LEVELS.join(', ')}`);
    emit({ type: 'log', level, message: String(message), fields }, fields, 'fields');
  },
  progress(fraction = null, message = '') {
    if (fraction !== null && !(fraction >= 0 && fraction <= 1)) {
      throw new RangeError(`fraction: ${fraction} is not between 0 and 1`);
    }
    emit({ type: 'progress', fraction, message: String(message) }, fraction, 'fraction');
  },
  output(value) {
    emit({ type: 'output', value }, value, 'output');
  },
  artifactPath(file) {
    const target = path.normalize(path.join(outputDir, file));
    if (file === '' || path.isAbsolute(file) || !target.startsWith(outputDir.replace(/\/$/, '') + '/')) {
      throw new RangeError(`name: ${file} is not a relative path inside ${outputDir}`);
    }
    mkdirSync(path.dirname(target), { recursive: true });
    return target;
  },
};
for (const level of LEVELS) ctx[level] = (message, fields) => ctx.log(message, level, fields);

function readInput() {
  let text;
  try {
    text = readFileSync(env.SKILLCELL_INPUT ?? '/input/input.json', 'utf8');
  } catch (error) {
    if (error.code === 'ENOENT') return null;
    throw error;
  }
  return JSON.parse(text);
}

// A named export, the default export itself when that is what is asked for, or a member of either's object (CommonJS).
function find(module) {
  for (const place of [module, module.default]) {
    if (place !== undefined && place !== null && typeof place[name] === 'function') return place[name].bind(place);
  }
  if (['', 'default', 'module.exports'].includes(name) && typeof module.default === 'function') return module.default;
  throw new TypeError(`${script} exports no function ${JSON.stringify(name)}`);
}

async function send(returned) {
  let value = await returned;
  if (value !== null && typeof value === 'object' && typeof value.next === 'function') {
    // By hand, since `for await` would drop what the generator returns.
    for (let step = await value.next(); ; step = await value.next()) {
      if (step.done) {
        value = step.value;
        break;
      }
      ctx.output(await step.value);
    }
  }
  if (value !== null && value !== undefined) ctx.output(value);
}

function report(error) {
  if (error !== null && typeof error === 'object' && typeof error.stack === 'string') {
    const frames = error.stack.split('\n').filter((line) => !line.includes(here));
    process.stderr.write(frames.join('\n') + '\n');
  } else {
    process.stderr.write(`Uncaught ${String(error)}\n`);
  }
  process.exitCode = 1;
}

// Not process.exit: what the function left running (timers, sockets, pending writes) ends as it would in plain node.
try {
  await send(find(await import(pathToFileURL(script).href))(readInput(), ctx));
} catch (error) {
  report(error);
}
