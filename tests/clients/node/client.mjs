// What the npm package `ollama` does, one line of `verb<TAB>JSON` for each answer: URL, then a GGUF file, as arguments.
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { Ollama } from 'ollama'

const [url, file] = process.argv.slice(2)
const client = new Ollama({ host: url })
const say = (verb, value) => console.log(`${verb}\t${JSON.stringify(value)}`)
const options = { num_predict: 8, temperature: 0 }
const messages = [{ role: 'user', content: 'What is the capital of France?' }]

say('version', await client.version())
say('list', await client.list())
say('chat', await client.chat({ model: 'smollm2', messages, options }))
for await (const part of await client.chat({ model: 'smollm2', messages, options, stream: true })) say('chat-stream', part)
say('generate', await client.generate({ model: 'smollm2', prompt: 'The sea is', options }))
for await (const part of await client.generate({ model: 'smollm2', prompt: 'The sea is', options, stream: true })) say('generate-stream', part)
say('system', await client.generate({ model: 'pirate', prompt: 'Hi' }))
say('embed', await client.embed({ model: 'all-minilm', input: ['one', 'two'] }))
say('embeddings', await client.embeddings({ model: 'all-minilm', prompt: 'one' }))
say('ps', await client.ps())

// The package sends no blobs by itself; its users do, with fetch.
const content = readFileSync(file)
const digest = 'sha256:' + createHash('sha256').update(content).digest('hex')
const sent = await fetch(`${url}/api/blobs/${digest}`, { method: 'POST', body: content })
if (sent.status !== 201) throw new Error(`blob: ${sent.status}`)
for await (const step of await client.create({ model: 'made', files: { 'm.gguf': digest }, system: 'Be brief.', stream: true })) say('create', step)
say('show', await client.show({ model: 'made' }))
await client.copy({ source: 'made', destination: 'copied' })
await client.delete({ model: 'made' })
await client.delete({ model: 'copied' })

for (const [verb, call] of [
  ['gone', () => client.show({ model: 'made' })],
  ['wrong', () => client.generate({ model: 'smollm2', prompt: 'x', options: { num_ctx: 'many' } })],
]) {
  try {
    await call()
    throw new Error(`${verb} was not refused`)
  } catch (error) {
    if (error.status_code === undefined) throw error
    say(verb, { status: error.status_code, error: error.error })
  }
}

// A stream that its reader gives up.
const endless = await client.generate({ model: 'smollm2', prompt: 'Count for ever:', stream: true, options: { num_predict: -1 } })
try {
  for await (const part of endless) {
    say('aborted', { done: part.done })
    endless.abort()
  }
} catch (error) {
  if (error.name !== 'AbortError') throw error
}
