// Recording from the microphone, and conversion of what a browser can decode to WAV, which the server reads.

const RATE = 48000; // Hz
export const LONGEST = 600; // seconds of a clip that the server accepts

export class Recorder {
  // Calls onLevel with the peak of the last moment, 0 to 1.
  async start(onLevel) {
    if (!navigator.mediaDevices) throw new Error("browsers record on https:// and on localhost only; choose a file");
    // What makes calls pleasant changes voices.
    const audio = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio });
    this.parts = [];
    this.recorder = new MediaRecorder(this.stream);
    this.recorder.ondataavailable = (event) => this.parts.push(event.data);
    this.context = new AudioContext();
    const analyser = this.context.createAnalyser();
    this.context.createMediaStreamSource(this.stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    this.timer = setInterval(() => {
      analyser.getFloatTimeDomainData(samples);
      onLevel(samples.reduce((peak, x) => Math.max(peak, Math.abs(x)), 0));
    }, 60);
    this.recorder.start();
  }

  async stop() {
    clearInterval(this.timer);
    const stopped = new Promise((resolve) => { this.recorder.onstop = resolve; });
    this.recorder.stop();
    await stopped;
    this.stream.getTracks().forEach((track) => track.stop());
    await this.context.close();
    return toWav(new Blob(this.parts));
  }
}

// Returns a mono WAV of what a browser can decode.
export async function toWav(blob) {
  const context = new OfflineAudioContext(1, 1, RATE);
  const decoded = await context.decodeAudioData(await blob.arrayBuffer());
  if (decoded.duration > LONGEST) throw new Error(`it is longer than ${LONGEST / 60} minutes`);
  const mono = new Float32Array(decoded.length);
  for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
    decoded.getChannelData(channel).forEach((x, i) => { mono[i] += x / decoded.numberOfChannels; });
  }
  return wav(mono);
}

function wav(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (place, letters) => [...letters].forEach((c, i) => view.setUint8(place + i, c.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channel
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, x))), true));
  return new Blob([view], { type: "audio/wav" });
}
