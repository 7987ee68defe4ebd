// A TypeScript client of a running server: records events, asks for a segment and for items, streams, meets an error.
// `node client.js http://HOST:PORT` prints what came back as one JSON object.
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { EventService, ListEventsRequestSchema } from "./gen/segrec/v1/event_service_pb.js";
import { SegrecService, StreamSegmentRequestSchema } from "./gen/segrec/v1/segrec_service_pb.js";
import { BadRequestSchema, ErrorInfoSchema } from "./gen/google/rpc/error_details_pb.js";

const transport = createGrpcTransport({ baseUrl: process.argv[2]! });
const segrec = createClient(SegrecService, transport);
const events = createClient(EventService, transport);
const userId = "typescript";

const items = ["item-002", "item-006", "item-010", "item-014", "item-018"];
const recorded = await events.recordEvents({
  events: items.map((itemId, index) => ({ userId, event: { itemId, action: "view", eventId: `ts-${index}` } })),
});

const segment = await segrec.segment({ subject: { case: "userId", value: userId } });
const recommended = await segrec.recommend({ subject: { case: "userId", value: userId }, options: { topK: 3 } });

const listed: string[] = [];
const request = create(ListEventsRequestSchema, { userId, pageSize: 2 });
do {
  const page = await events.listEvents(request);
  listed.push(...page.events.map((event) => event.itemId));
  request.pageToken = page.nextPageToken;
} while (request.pageToken);

async function* messages() {
  yield create(StreamSegmentRequestSchema, { payload: { case: "config", value: {} } });
  const chunk = { chunkId: 1n, userIds: [userId, "", "nobody"] };
  yield create(StreamSegmentRequestSchema, { payload: { case: "chunk", value: chunk } });
}
const outcomes: (string | undefined)[] = [];
let answeredCount = 0n;
for await (const { payload } of segrec.streamSegment(messages())) {
  if (payload.case === "chunk") outcomes.push(...payload.value.rows.map((row) => row.outcome.case));
  if (payload.case === "summary") answeredCount = payload.value.answeredCount;
}

let error = {};
try {
  await segrec.recommend({ subject: { case: "userId", value: userId }, options: { topK: 501 } });
} catch (caught) {
  const failure = ConnectError.from(caught);
  const [info] = failure.findDetails(ErrorInfoSchema);
  const [bad] = failure.findDetails(BadRequestSchema);
  error = { code: Code[failure.code], reason: info?.reason, domain: info?.domain, field: bad?.fieldViolations[0]?.field };
}

console.log(
  JSON.stringify({
    stored: recorded.storedCount + recorded.duplicateCount,
    segment: segment.assignment?.segmentId,
    items: recommended.items.length,
    listed: listed.length,
    outcomes,
    answered: Number(answeredCount),
    error,
  }),
);
