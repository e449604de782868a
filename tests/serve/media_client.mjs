// Pictures and sound from the openai package for node: one line of JSON for each check.
// usage: node media_client.mjs BASE_URL PICTURE_URL SOUND_BASE64

import OpenAI from 'openai';

const [baseURL, picture, sound] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 });
const model = 'sees';

function tell(check, result) {
  console.log(JSON.stringify({ check, ...result }));
}

async function chat(check, part) {
  const content = [part, { type: 'text', text: 'what is it?' }];
  const reply = await client.chat.completions.create({ model, max_tokens: 4, messages: [{ role: 'user', content }] });
  tell(check, reply.usage.prompt_tokens_details);
}

await chat('picture', { type: 'image_url', image_url: { url: picture } });
await chat('sound', { type: 'input_audio', input_audio: { data: sound, format: 'wav' } });
const shown = [{ type: 'input_image', image_url: picture, detail: 'auto' }];
const response = await client.responses.create({
  model,
  max_output_tokens: 4,
  input: [
    { role: 'user', content: 'look' },
    { type: 'function_call', call_id: 'c', name: 'view_image', arguments: '{"path": "a.png"}' },
    { type: 'function_call_output', call_id: 'c', output: shown },
  ],
});
tell('tool', { tokens: response.usage.input_tokens });
try {
  await chat('broken', { type: 'image_url', image_url: { url: 'data:image/png;base64,AAAA' } });
} catch (error) {
  tell('broken', { status: error.status, code: error.code, param: error.param });
}
