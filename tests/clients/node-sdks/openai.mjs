// What the npm package `openai` does: chat, tools, structured outputs, responses, completions, embeddings, refusals.
import OpenAI from 'openai'
import { zodResponseFormat } from 'openai/helpers/zod'
import { z } from 'zod'
import { CALLER, CHAT, city, DESCRIBE, EMBEDDER, HELLO, refused, say, url, WEATHER } from './said.mjs'

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 })
const hello = { model: CHAT, messages: [{ role: 'user', content: HELLO }], max_completion_tokens: 8, temperature: 0 }
say('models', (await client.models.list()).data.map((model) => model.id).sort())
say('chat', (await client.chat.completions.create(hello)).choices[0].message.content)
const pieces = []
for await (const part of await client.chat.completions.create({ ...hello, stream: true })) pieces.push(...part.choices.map((choice) => choice.delta.content ?? ''))
say('stream', pieces)

const tools = [{ type: 'function', function: { name: 'get_weather', description: 'The weather in a city now', parameters: city } }]
const weather = { model: CALLER, messages: [{ role: 'user', content: WEATHER }], tools, temperature: 0, max_completion_tokens: 60 }
const called = (message) => (message.tool_calls ?? []).map((call) => ({ name: call.function.name, arguments: JSON.parse(call.function.arguments) }))
const answer = (await client.chat.completions.create(weather)).choices[0].message
say('tool', called(answer))
say('tool-stream', called((await client.chat.completions.stream(weather).finalChatCompletion()).choices[0].message))
const results = (answer.tool_calls ?? []).map((call) => ({ role: 'tool', tool_call_id: call.id, content: '21 degrees and sunny' }))
say('tool-result', (await client.chat.completions.create({ ...weather, messages: [...weather.messages, answer, ...results] })).choices[0].message.content)
say('required', called((await client.chat.completions.create({ ...weather, model: CHAT, tool_choice: 'required' })).choices[0].message))
say('none', called((await client.chat.completions.create({ ...weather, tool_choice: 'none' })).choices[0].message))

const City = z.object({ name: z.string().max(16), kind: z.enum(['capital', 'port', 'village']), districts: z.array(z.string().max(16)).min(1).max(2) })
const asked = { model: CHAT, messages: [{ role: 'user', content: DESCRIBE }], max_completion_tokens: 300 }
say('structured', (await client.chat.completions.parse({ ...asked, response_format: zodResponseFormat(City, 'city') })).choices[0].message.parsed)
say('complete', (await client.completions.create({ model: CHAT, prompt: 'The capital of France is', max_tokens: 8, temperature: 0 })).choices[0].text)

const respond = { model: CHAT, input: HELLO, max_output_tokens: 8, temperature: 0 }
say('responses', (await client.responses.create(respond)).output_text)
const deltas = []
for await (const event of await client.responses.create({ ...respond, stream: true })) if (event.type === 'response.output_text.delta') deltas.push(event.delta)
say('responses-stream', deltas)
say('embed', (await client.embeddings.create({ model: EMBEDDER, input: ['one', 'two'] })).data.map((item) => item.embedding))
await refused(
  { unknown: () => client.chat.completions.create({ ...hello, model: 'nobody' }), incapable: () => client.chat.completions.create({ ...weather, model: 'plain' }) },
  (error) => ({ status: error.status, message: error.error.message }),
)
