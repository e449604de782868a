// Transcripts from the openai package for node: one line of JSON for each check.
// usage: node transcription_client.mjs BASE_URL FILE

import { createReadStream } from 'node:fs';
import OpenAI from 'openai';

const [baseURL, path] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 });
const model = 'hears';
const file = () => createReadStream(path);

function tell(check, result) {
  console.log(JSON.stringify({ check, ...result }));
}

const whole = await client.audio.transcriptions.create({ model, file: file() });
tell('whole', { text: whole.text, audio: whole.usage.input_token_details.audio_tokens });
let deltas = '';
let text = '';
for await (const event of await client.audio.transcriptions.create({ model, file: file(), stream: true })) {
  if (event.type === 'transcript.text.delta') deltas += event.delta;
  else text = event.text;
}
tell('stream', { deltas, text });
tell('translation', { text: (await client.audio.translations.create({ model, file: file() })).text });
try {
  await client.audio.transcriptions.create({ model, file: file(), response_format: 'vtt' });
} catch (error) {
  tell('refused', { status: error.status, param: error.param });
}
