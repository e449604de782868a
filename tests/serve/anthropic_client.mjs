// Vercel's AI SDK with its Anthropic provider against a server: one line of JSON for each check.
// usage: node anthropic_client.mjs BASE_URL (ai, @ai-sdk/anthropic and zod installed beside it)

import { createAnthropic } from '@ai-sdk/anthropic';
import { generateObject, generateText, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

const model = createAnthropic({ baseURL: process.argv[2], apiKey: 'none' })('scripted');
const weather = tool({
  description: 'The weather in a city.',
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `sunny in ${city} <|s_text|>`,
});
const options = { model, temperature: 0, maxOutputTokens: 200, maxRetries: 0 };

function tell(check, result) {
  console.log(JSON.stringify({ check, ...result }));
}

function said({ text, reasoningText, toolCalls, finishReason, usage }) {
  const calls = toolCalls.map(({ toolName, input }) => [toolName, input]);
  return { text, reasoning: reasoningText, calls, finish: finishReason, input: usage.inputTokens };
}

for (const trigger of ['text', 'think', 'all']) {
  const asked = { ...options, prompt: `<|s_${trigger}|>`, tools: { get_weather: weather } };
  tell(trigger, said(await generateText(asked)));
  const stream = streamText(asked);
  const text = await stream.text;
  tell(`${trigger} streamed`, {
    ...said({
      text, reasoningText: await stream.reasoningText, toolCalls: await stream.toolCalls,
      finishReason: await stream.finishReason, usage: await stream.usage,
    }),
  });
}
const loop = await generateText({
  ...options, prompt: '<|s_calls|>', tools: { get_weather: weather }, stopWhen: stepCountIs(3),
});
tell('loop', { text: loop.text, steps: loop.steps.length });
const { object } = await generateObject({
  ...options, prompt: '<|s_tool|>', schema: z.object({ city: z.enum(['Rome', 'Oslo']) }),
});
tell('object', { object });
try {
  await generateText({ ...options, prompt: 'x '.repeat(9000) });
} catch (error) {
  tell('too long', { status: error.statusCode, message: error.message });
}
