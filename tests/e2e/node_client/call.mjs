// Calls a Skill and shows what it says while it says it.  node call.mjs HOST:PORT KEY PUBLISHER/NAME JSON
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [address, key, skill, input] = process.argv.slice(2);
const protos = process.env.PROTOS ?? "protos"; // of a checkout
const options = { includeDirs: [protos], keepCase: true, enums: String, longs: String, defaults: true, oneofs: true };
const definition = loader.loadSync("skillcell/v1/execution.proto", options);
const { ExecutionService } = grpc.loadPackageDefinition(definition).skillcell.v1;

const client = new ExecutionService(address, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${key}`);

const request = { spec: { skill, input_json: Buffer.from(input) } };
for await (const { event } of client.Execute(request, metadata)) {
  switch (event.kind) {
    case "stdout": process.stdout.write(event.stdout.data); break;
    case "log": console.error(event.log.message, String(event.log.fields_json)); break;
    case "progress": console.error(`${Math.round(event.progress.fraction * 100)} %`, event.progress.message); break;
    case "output": console.log(String(event.output.json)); break;
    case "completed": {
      const { outcome, message, usage } = event.completed;
      console.error(outcome, message, `${usage.billed_ms} ms billed`);
      process.exitCode = outcome === "OUTCOME_SUCCEEDED" ? 0 : 1;
    }
  }
}
client.close();
