// A socket of one's own with the types of the contract, without the rest of the client.
import { io, type Socket } from "socket.io-client";
import type { ClientToServerEvents, Message, ServerToClientEvents } from "support-chat-client/events";

export async function lastMessages(url: string, sessionId: string): Promise<Message[]> {
  const socket: Socket<ServerToClientEvents, ClientToServerEvents> = io(url);
  const ack = await socket.emitWithAck("init_session", { sessionId, after: "" });
  socket.disconnect();
  if ("error" in ack) throw new Error(`${ack.error.code}: ${ack.error.message}`);
  return ack.messages;
}
