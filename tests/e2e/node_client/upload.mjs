// Sends a file of any size ahead, and calls a Skill with it.  node upload.mjs HOST:PORT KEY PUBLISHER/NAME FILE
import { once } from "node:events";
import { createReadStream } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [address, key, skill, file] = process.argv.slice(2);
const protos = process.env.PROTOS ?? "protos"; // of a checkout
const options = { includeDirs: [protos], keepCase: true, enums: String, longs: String, oneofs: true };
const definition = loader.loadSync("skillcell/v1/execution.proto", options);
const { ExecutionService } = grpc.loadPackageDefinition(definition).skillcell.v1;

const client = new ExecutionService(address, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${key}`);

let upload;
const answer = new Promise((resolve, reject) => {
  upload = client.UploadInput(metadata, (error, value) => (error ? reject(error) : resolve(value)));
});
upload.write({ header: {} }); // with size_bytes and digest, where they are known
for await (const chunk of createReadStream(file, { highWaterMark: 1 << 20 })) {
  if (!upload.write({ chunk })) await once(upload, "drain");
}
upload.end();
const { digest } = await answer;

for await (const { event } of client.Execute({ spec: { skill, stdin_upload: digest } }, metadata)) {
  if (event.kind === "stdout") process.stdout.write(event.stdout.data);
}
client.close();
