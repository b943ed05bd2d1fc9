// What `foundry-local-sdk` does with a service: it finds it with the command `foundry`, and its endpoint goes to `openai`.
import { FoundryLocalManager } from 'foundry-local-sdk'
import OpenAI from 'openai'
import { HELLO, say } from './said.mjs'

const manager = new FoundryLocalManager()
const info = await manager.init('smollm2-135m')
say('models', (await manager.listCatalogModels()).map((model) => model.alias))
say('cached', (await manager.listCachedModels()).map((model) => model.id))
say('loaded', (await manager.listLoadedModels()).map((model) => model.id))
const client = new OpenAI({ baseURL: manager.endpoint, apiKey: manager.apiKey, maxRetries: 0 })
const hello = { model: info.id, messages: [{ role: 'user', content: HELLO }], max_tokens: 8, temperature: 0 }
say('chat', (await client.chat.completions.create(hello)).choices[0].message.content)
const pieces = []
for await (const part of await client.chat.completions.create({ ...hello, stream: true })) pieces.push(...part.choices.map((choice) => choice.delta.content ?? ''))
say('stream', pieces)
await manager.unloadModel(info.id)
say('unloaded', (await manager.listLoadedModels()).map((model) => model.id))
