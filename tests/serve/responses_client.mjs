// The openai package for node against a server: one line of JSON for each check.
// usage: node responses_client.mjs BASE_URL (openai and ws installed beside it)

import OpenAI from 'openai';
import { ResponsesWS } from 'openai/resources/responses/ws';

const client = new OpenAI({ baseURL: process.argv[2], apiKey: 'none', maxRetries: 0 });
const model = 'scripted';
const weather = {
  type: 'function',
  name: 'get_weather',
  parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  strict: false,
};

function tell(check, result) {
  console.log(JSON.stringify({ check, ...result }));
}

async function final(check, request) {
  const stream = client.responses.stream({ model, temperature: 0, ...request });
  const kinds = [];
  stream.on('event', (event) => kinds.push(event.type));
  const response = await stream.finalResponse();
  const { status, output_text: text, output, error } = response;
  const logprobs = output[0].content?.[0].logprobs ?? [];
  const spelled = Buffer.from(logprobs.flatMap((token) => token.bytes)).toString();
  tell(check, { status, text, output, error, spelled, last: kinds.at(-1) });
}

await final('text', { input: '<|s_text|>' });
await final('reasoning', { input: '<|s_think|>' });
await final('function', { input: '<|s_tool|>', tools: [weather] });
await final('custom', { input: '<|s_tool|>', tools: [{ type: 'custom', name: 'get_weather' }] });
const home = { type: 'namespace', name: 'home', description: 'At home.', tools: [weather] };
const nested = { type: 'function', name: 'get_weather', namespace: 'home' };
await final('namespace', { input: 'x', tools: [home], tool_choice: nested, max_output_tokens: 200 });
await final('logprobs', { input: '<|s_text|>', include: ['message.output_text.logprobs'] });
// twenty letters, then more alternatives at once than are followed
const many = Array.from({ length: 4000 }, (_, i) => `y y "${i.toString(16)}"`).join(' | ');
await final('failing', { input: 'x', grammar: `start: /[ab]{20}/ x\nx: ${many}\ny: "q"?` });
await final('incomplete', { input: '<|s_text|>', max_output_tokens: 2 });
try {
  await final('refused', { input: 'x', previous_response_id: 'resp_none' });
} catch (error) {
  tell('refused', { status: error.status, code: error.code });
}

const socket = new ResponsesWS(client);
let previous;
socket.on('error', (error) => tell('socket error', { message: String(error) }));
socket.on('response.completed', (event) => {
  tell('socket', { text: event.response.output[0].content[0].text, previous: event.response.previous_response_id });
  if (previous) {
    socket.close();
    return;
  }
  previous = event.response.id;
  ask({ previous_response_id: previous });
});
function ask(more) {
  socket.send({ type: 'response.create', model, temperature: 0, input: '<|s_text|>', store: false, ...more });
}
ask({});
