// The same call by a client that has no protos: it learns the service from the server's reflection.
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import descriptor from "protobufjs/ext/descriptor/index.js";

const [address, key, skill, input] = process.argv.slice(2);

// grpc/reflection/v1alpha/reflection.proto, as far as it is used here.
const string = (id) => ({ type: "string", id });
const reflection = loader.fromJSON({
  nested: {
    grpc: { nested: { reflection: { nested: { v1alpha: { nested: {
      Request: {
        oneofs: { message_request: { oneof: ["file_by_filename", "file_containing_symbol", "list_services"] } },
        fields: { host: string(1), file_by_filename: string(3), file_containing_symbol: string(4), list_services: string(7) },
      },
      Files: { fields: { file_descriptor_proto: { rule: "repeated", type: "bytes", id: 1 } } },
      Service: { fields: { name: string(1) } },
      Services: { fields: { service: { rule: "repeated", type: "Service", id: 1 } } },
      Failure: { fields: { error_code: { type: "int32", id: 1 }, error_message: string(2) } },
      Response: { fields: {
        file_descriptor_response: { type: "Files", id: 4 },
        list_services_response: { type: "Services", id: 6 },
        error_response: { type: "Failure", id: 7 },
      } },
      ServerReflection: { methods: { ServerReflectionInfo: {
        requestType: "Request", requestStream: true, responseType: "Response", responseStream: true,
      } } },
    } } } } } },
  },
}, { keepCase: true });

const credentials = grpc.credentials.createInsecure();
const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${key}`);
const Reflection = grpc.loadPackageDefinition(reflection).grpc.reflection.v1alpha.ServerReflection;
const asked = new Reflection(address, credentials).ServerReflectionInfo(metadata);
const answers = asked[Symbol.asyncIterator]();

async function ask(question) {
  asked.write(question);
  const { value } = await answers.next();
  if (value.error_response) throw new Error(value.error_response.error_message);
  return value;
}

const listed = (await ask({ list_services: "*" })).list_services_response.service.map(({ name }) => name);
console.error(listed.sort().join(" "));

// Every file that the service needs, by name.
const files = new Map();
async function fetch(question) {
  for (const bytes of (await ask(question)).file_descriptor_response.file_descriptor_proto) {
    const file = descriptor.FileDescriptorProto.decode(bytes);
    if (files.has(file.name)) continue;
    files.set(file.name, file);
    for (const name of file.dependency) if (!files.has(name)) await fetch({ file_by_filename: name });
  }
}
await fetch({ file_containing_symbol: "skillcell.v1.ExecutionService" });
asked.end();

const set = { file: [...files.values()].map((file) => descriptor.FileDescriptorProto.toObject(file)) };
const definition = loader.loadFileDescriptorSetFromObject(set, { keepCase: true, enums: String, longs: String, oneofs: true });
const { ExecutionService } = grpc.loadPackageDefinition(definition).skillcell.v1;
const client = new ExecutionService(address, credentials);
const call = client.Execute({ spec: { skill, input_json: Buffer.from(input) } }, metadata);
for await (const { event } of call) {
  if (event.kind === "output") console.log(String(event.output.json));
  if (event.kind === "completed") console.error(event.completed.outcome);
}
client.close();
