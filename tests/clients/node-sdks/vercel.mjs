// What npm's `ai` does with `ollama-ai-provider-v2`: text, its stream, tools, objects, embeddings.
import { embedMany, generateText, jsonSchema, Output, stepCountIs, streamText, tool } from 'ai'
import { createOllama } from 'ollama-ai-provider-v2'
import { CALLER, CHAT, city, DESCRIBE, described, EMBEDDER, HELLO, refused, say, url, WEATHER } from './said.mjs'

// The provider puts temperature and maxOutputTokens beside `options`, where Ollama does not look; these arrive.
const options = (num_predict, temperature = 0) => ({ maxRetries: 0, providerOptions: { ollama: { options: { num_predict, temperature } } } })
const ollama = createOllama({ baseURL: `${url}/api` })
const hello = { model: ollama(CHAT), prompt: HELLO, ...options(8) }
say('chat', (await generateText(hello)).text)
const pieces = []
for await (const piece of streamText(hello).textStream) pieces.push(piece)
say('stream', pieces)

const get_weather = tool({ description: 'The weather in a city now', inputSchema: jsonSchema(city), execute: async ({ city }) => `21 degrees and sunny in ${city}` })
const weather = { model: ollama(CALLER), prompt: WEATHER, tools: { get_weather }, ...options(60) }
const called = (calls) => calls.map((call) => ({ name: call.toolName, arguments: call.input }))
say('tool', called((await generateText(weather)).toolCalls))
say('tool-stream', called(await streamText(weather).toolCalls))
say('tool-result', (await generateText({ ...weather, stopWhen: stepCountIs(3) })).text)
const object = Output.object({ schema: jsonSchema(described) })
say('structured', (await generateText({ model: ollama(CHAT), prompt: DESCRIBE, output: object, ...options(300, 0.8) })).output)
say('embed', (await embedMany({ model: ollama.embedding(EMBEDDER), values: ['one', 'two'] })).embeddings)
await refused({ unknown: () => generateText({ ...hello, model: ollama('nobody') }) }, (error) => ({ status: error.statusCode, message: error.responseBody }))
