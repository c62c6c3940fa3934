// The page: a clip becomes a voice, which speaks beside the nearest stock voice and a blend of the two.

import { Recorder, toWav } from "./sound.js";

const LEAST_SECONDS = 3; // of a recording
const READ_BY_SERVER = /\.(wav|flac|ogg|oga|opus|mp3|aiff?|au)$/i;

const $ = (id) => document.getElementById(id);
const speak = [...document.querySelectorAll(".say")];
const packs = [...document.querySelectorAll(".pack")];

let voice = null; // as the server describes it
let recorder = null;
let started = 0;
let ticking = null;
let token = "";
let retry = null; // what to do again once there is a token

function show(id, text, bad = false) {
  $(id).textContent = text;
  $(id).classList.toggle("bad", bad);
}

async function request(path, options = {}) {
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("the server does not answer; is it still running?");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) {
    $("token-form").hidden = false;
    $("token").focus();
  }
  const body = await answer.json().catch(() => null);
  if (answer.status === 401) throw new Error(token ? "this is not the server's token" : "the server's token is missing");
  throw new Error(body?.error?.message ?? `the server answered ${answer.status}`);
}

// Runs an action, with what goes wrong shown in a status line.
async function run(status, action) {
  retry = null;
  try {
    if ($(status).classList.contains("bad")) show(status, "");
    await action();
  } catch (error) {
    show(status, error.message, true);
    retry = () => run(status, action);
  }
}

function enable() {
  [...speak, ...packs].forEach((button) => { button.disabled = !voice; });
  speak.forEach((button) => { button.nextElementSibling.hidden = true; });
}

async function makeVoice(blob, name) {
  voice = null;
  enable();
  $("notes").replaceChildren();
  $("heard").hidden = false;
  $("clip-name").textContent = name;
  $("clip-sound").src = URL.createObjectURL(blob);
  show("clip-status", "Listening to the clip …");
  const form = new FormData();
  form.append("files", blob, name);
  voice = await (await request("v1/voices", { method: "POST", body: form })).json();
  show("clip-status", "The voice is ready.");
  $("notes").replaceChildren(...voice.notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })));
  $("about-nearest").textContent = `${voice.nearest}, style similarity ${voice.similarity.toFixed(2)}`;
  enable();
}

async function useFile(file) {
  if (!file) return;
  await run("clip-status", async () => {
    let blob = file;
    if (!READ_BY_SERVER.test(file.name)) {
      blob = await toWav(file).catch(() => { throw new Error(`${file.name}: not a sound that this browser can read`); });
    }
    await makeVoice(blob, file.name);
  });
}

async function toggleRecording() {
  if (recorder) return stopRecording();
  const starting = new Recorder();
  await starting.start((level) => { $("level").value = Math.sqrt(level); });
  recorder = starting;
  started = Date.now();
  $("record").textContent = "Stop";
  $("level").hidden = false;
  const tick = () => show("clip-status", `Recording: ${Math.floor((Date.now() - started) / 1000)} s. Speak for about ten.`);
  tick();
  ticking = setInterval(tick, 500);
}

async function stopRecording() {
  const seconds = (Date.now() - started) / 1000;
  const stopping = recorder;
  recorder = null;
  clearInterval(ticking);
  $("record").textContent = "Record";
  $("level").hidden = true;
  const blob = await stopping.stop();
  if (seconds < LEAST_SECONDS) throw new Error(`${seconds.toFixed(1)} s are too short; speak for at least ${LEAST_SECONDS} s`);
  await makeVoice(blob, "recording.wav");
}

// The expression that the server understands: a voice, or a mix with weights.
function expression(kind) {
  if (kind === "own") return voice.id;
  if (kind === "nearest") return voice.nearest;
  const share = Number($("share").value);
  if (share === 0) return voice.id;
  return share === 100 ? voice.nearest : `${voice.id}(${100 - share})+${voice.nearest}(${share})`;
}

async function say(button) {
  const player = button.nextElementSibling;
  const body = { model: "kokoro", input: $("text").value, voice: expression(button.dataset.kind), response_format: "wav" };
  speak.forEach((other) => { other.disabled = true; });
  show("say-status", "Speaking …");
  try {
    const headers = { "Content-Type": "application/json" };
    const answer = await request("v1/audio/speech", { method: "POST", headers, body: JSON.stringify(body) });
    URL.revokeObjectURL(player.src);
    player.src = URL.createObjectURL(await answer.blob());
    player.hidden = false;
    show("say-status", "");
    await player.play().catch(() => {}); // a browser may want another click
  } finally {
    speak.forEach((other) => { other.disabled = !voice; });
  }
}

async function download(format) {
  const kind = $("pack-kind").value;
  const answer = await request(`v1/packs?voice=${encodeURIComponent(expression(kind))}&format=${format}`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = `${kind === "own" ? "voice" : "blend"}.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

$("record").addEventListener("click", () => run("clip-status", toggleRecording));
$("file").addEventListener("change", (event) => useFile(event.target.files[0]));
$("share").addEventListener("input", () => { $("share-shown").textContent = `${$("share").value} %`; });
speak.forEach((button) => button.addEventListener("click", () => run("say-status", () => say(button))));
packs.forEach((button) => button.addEventListener("click", () => run("say-status", () => download(button.dataset.format))));
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token-form").hidden = true;
  retry?.();
});
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.remove("over"); });
}
document.addEventListener("drop", (event) => useFile(event.dataTransfer.files[0]));
run("clip-status", () => request("v1/models")); // asks for the token at once, if there is one
