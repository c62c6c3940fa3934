// node speak_with_kokoro_js.mjs MODELS TOKENS VOICE OUT: kokoro-js speaks tokens, separated by commas, and writes a WAV file.
import { StyleTextToSpeech2Model, Tensor, env } from "@huggingface/transformers";
import { KokoroTTS } from "kokoro-js";

const [models, tokens, voice, out] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = models;
const model = await StyleTextToSpeech2Model.from_pretrained("kokoro", { dtype: "q8" });
const ids = BigInt64Array.from(tokens.split(",").map(BigInt));
const speech = new KokoroTTS(model, null);
const audio = await speech.generate_from_ids(new Tensor("int64", ids, [1, ids.length]), { voice });
await audio.save(out);
