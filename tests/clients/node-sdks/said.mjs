// What every script here shares: how an answer is printed, and what is asked. A script's only argument is the server's URL.
export const url = process.argv[2]
// The models: real weights, the same with a template that shows it how to call tools, and real weights that embed.
export const [CHAT, CALLER, EMBEDDER] = ['smollm2', 'caller', 'all-minilm']
export const HELLO = 'What is the capital of France?'
export const WEATHER = 'What is the weather in Nairobi?'
export const DESCRIBE = 'Describe Paris as JSON.'
export const city = { type: 'object', properties: { city: { type: 'string', maxLength: 20 } }, required: ['city'] }
export const described = {
  type: 'object',
  properties: {
    name: { type: 'string', maxLength: 16 },
    kind: { enum: ['capital', 'port', 'village'] },
    districts: { type: 'array', items: { type: 'string', maxLength: 16 }, minItems: 1, maxItems: 2 },
  },
  required: ['name', 'kind', 'districts'],
  additionalProperties: false,
}
export const say = (verb, value) => console.log(`${verb}\t${JSON.stringify(value)}`)

// Refusals, each told by its status and sentence; what is not refused ends the script.
export async function refused(calls, told) {
  for (const [verb, call] of Object.entries(calls)) {
    try {
      await call()
    } catch (error) {
      say('refused', { verb, ...told(error) })
      continue
    }
    throw new Error(`${verb} was not refused`)
  }
}
