import type { ManagerOptions, Socket, SocketOptions } from "socket.io-client";
import type { ChatError, ClientToServerEvents, Message, ServerToClientEvents } from "./events.js";

export type * from "./events.js";

export type ChatSocket = Socket<ServerToClientEvents, ClientToServerEvents>;

/** What of Web Storage is used. */
export type ChatStorage = Pick<Storage, "getItem" | "setItem" | "removeItem" | "key" | "length">;

export interface ChatOptions {
  /** Where the gateway is; the page's own origin if it is missing. */
  url?: string;
  /** `io` of `socket.io-client`. If it is missing: `globalThis.io`, then `import("socket.io-client")`. */
  io?: (url?: string, options?: Partial<ManagerOptions & SocketOptions>) => Socket;
  /** A socket of one's own instead of `url` and `io`; it stays open after `close`. */
  socket?: ChatSocket | Socket;
  /** What survives a reload: `"local"` (the default) is local storage, `"memory"` nothing. */
  storage?: "local" | "memory" | ChatStorage;
  /** For a gateway that demands one; a function is asked at each connection. */
  token?: string | (() => string | Promise<string>);
}

export interface ShownMessage extends Omit<Message, "id" | "chatSessionId"> {
  /** Null until the gateway has acked it. */
  id: string | null;
  /** Null until it is in the history. */
  chatSessionId: string | null;
  /** Of what was said here; else null. */
  clientOffset: string | null;
  /** `waiting`: will be sent, again if need be. `accepted`, `stored`: as acked. `refused`: for a lasting reason. */
  state: "waiting" | "accepted" | "stored" | "refused";
  /** Why it was refused. */
  error: ChatError | null;
}

export interface ChatState {
  /** `connected`: in the session, with all that was said. `offline`: it comes back by itself. */
  readonly connection: "connecting" | "connected" | "offline";
  /** Why the gateway lets nobody in, if it says so. */
  readonly error: ChatError | null;
  readonly sessionId: string | null;
  /** Whether agents see this visitor as here. */
  readonly isActive: boolean;
  /** Whether the last answer was a program's. */
  readonly isAI: boolean;
  /** In the order of the history; what is not in it yet comes last. */
  readonly messages: readonly ShownMessage[];
}

export interface Chat {
  /** A new object after every change. */
  readonly state: ChatState;
  /** Once there is one. */
  readonly socket: ChatSocket | undefined;
  /** Calls the listener after every change, until the function that comes back is called. */
  subscribe(listener: () => void): () => void;
  /** Puts a message into the outbox. Its `clientOffset`. */
  send(content: string): string;
  /** Sends a refused message once more, as a new one with this `clientOffset`; null if there is no such message. */
  retry(clientOffset: string): string | null;
  /** Takes a refused message away; false if there is no such message. */
  discard(clientOffset: string): boolean;
  /** Ends it; what waits in the storage is sent when it is opened again. */
  close(): void;
}

export function openChat(options?: ChatOptions): Chat;

