// What the npm package `@anthropic-ai/sdk` does: messages, their stream, tools, the count of tokens, refusals.
import Anthropic from '@anthropic-ai/sdk'
import { CALLER, CHAT, city, DESCRIBE, described, HELLO, refused, say, url, WEATHER } from './said.mjs'

const client = new Anthropic({ baseURL: url, apiKey: 'none', maxRetries: 0 })
const messages = [{ role: 'user', content: HELLO }]
const hello = { model: CHAT, messages, max_tokens: 8, temperature: 0 }
say('chat', (await client.messages.create(hello)).content[0].text)
const pieces = []
const stream = client.messages.stream(hello).on('text', (text) => pieces.push(text))
say('stream-end', (await stream.finalMessage()).stop_reason)
say('stream', pieces)
say('count', (await client.messages.countTokens({ model: CHAT, messages })).input_tokens)

const tools = [{ name: 'get_weather', description: 'The weather in a city now', input_schema: city }]
const weather = { model: CALLER, messages: [{ role: 'user', content: WEATHER }], tools, max_tokens: 60, temperature: 0 }
const called = (message) => message.content.filter((block) => block.type === 'tool_use').map((block) => ({ name: block.name, arguments: block.input }))
const answer = await client.messages.create(weather)
say('tool', called(answer))
say('tool-stream', called(await client.messages.stream(weather).finalMessage()))
const results = answer.content.filter((block) => block.type === 'tool_use').map((block) => ({ type: 'tool_result', tool_use_id: block.id, content: '21 degrees and sunny' }))
const turns = [...weather.messages, { role: 'assistant', content: answer.content }, { role: 'user', content: results }]
say('tool-result', (await client.messages.create({ ...weather, messages: turns })).content[0].text)
say('required', called(await client.messages.create({ ...weather, model: CHAT, tool_choice: { type: 'any' } })))
const city_tool = [{ name: 'city', description: 'Say what a city is like', input_schema: described }]
const made = await client.messages.create({ model: CHAT, messages: [{ role: 'user', content: DESCRIBE }], tools: city_tool, tool_choice: { type: 'tool', name: 'city' }, max_tokens: 300 })
say('structured', called(made)[0].arguments)
await refused(
  { unknown: () => client.messages.create({ ...hello, model: 'nobody' }), incapable: () => client.messages.create({ ...weather, model: 'plain' }) },
  (error) => ({ status: error.status, message: error.error.error.message }),
)
