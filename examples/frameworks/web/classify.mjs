// Runs a condensed model with onnxruntime-web (WebAssembly) under node; a page does the same with the same calls.
//
//   npm install onnxruntime-web && node classify.mjs MODEL.onnx 1x1x24x24

import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";

const [path, dims] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(await readFile(path), { executionProviders: ["wasm"] });
const shape = dims.split("x").map(Number);
const zeros = new Float32Array(shape.reduce((a, b) => a * b, 1));
const outputs = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", zeros, shape) });
console.log(Array.from(outputs[session.outputNames[0]].data).join(" "));
