// What the npm package `ollama` does beyond text: tools, structured answers, log-probabilities.
import { Ollama } from 'ollama'
import { CALLER, CHAT, city, DESCRIBE, described, EMBEDDER, HELLO, refused, say, url, WEATHER } from './said.mjs'

const client = new Ollama({ host: url })
const hello = { model: CHAT, messages: [{ role: 'user', content: HELLO }], options: { num_predict: 8, temperature: 0 } }
const collect = async (stream, part) => {
  const found = []
  for await (const piece of await stream) found.push(...part(piece))
  return found
}
say('chat', (await client.chat(hello)).message.content)
say('stream', await collect(client.chat({ ...hello, stream: true }), (part) => [part.message.content]))

const tools = [{ type: 'function', function: { name: 'get_weather', description: 'The weather in a city now', parameters: city } }]
const weather = { model: CALLER, messages: [{ role: 'user', content: WEATHER }], tools, options: { temperature: 0, num_predict: 60 } }
const called = (part) => (part.message.tool_calls ?? []).map((call) => ({ name: call.function.name, arguments: call.function.arguments }))
const answer = await client.chat(weather)
say('tool', called(answer))
say('tool-stream', await collect(client.chat({ ...weather, stream: true }), called))
const messages = [...weather.messages, answer.message, { role: 'tool', tool_name: 'get_weather', content: '21 degrees and sunny' }]
say('tool-result', (await client.chat({ ...weather, messages })).message.content)

const asked = { model: CHAT, messages: [{ role: 'user', content: DESCRIBE }], options: { num_predict: 300 } }
say('structured', JSON.parse((await client.chat({ ...asked, format: described })).message.content))
say('logprobs', (await client.chat({ ...hello, logprobs: true, top_logprobs: 3 })).logprobs.map(({ token, logprob, top_logprobs }) => ({ token, logprob, top: top_logprobs.length })))
say('embed', (await client.embed({ model: EMBEDDER, input: ['one', 'two'] })).embeddings)
await refused(
  { unknown: () => client.chat({ ...hello, model: 'nobody' }), incapable: () => client.chat({ ...weather, model: 'plain' }), unthinking: () => client.chat({ ...hello, think: true }) },
  (error) => ({ status: error.status_code, message: error.error }),
)
