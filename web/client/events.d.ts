/** The events of the contract, for `io<ServerToClientEvents, ClientToServerEvents>()`. */

/** A message as it is stored. */
export interface Message {
  /** `c` and 24 of `a` to `z` and `0` to `9`. */
  id: string;
  sender: "user" | "admin";
  content: string;
  /** UTC, as `2026-01-31T09:41:07.123Z`. */
  createdAt: string;
  /** Whether a program answered; its `sender` is `"admin"`. */
  isAI: boolean;
  /** The session's `id`, which is not its `sessionId`. */
  chatSessionId: string;
}

export type ErrorCode =
  | "invalid_payload"
  | "session_not_found"
  | "unauthorized"
  | "forbidden"
  | "conflict"
  | "ai_off"
  | "too_large"
  | "rate_limited"
  | "overloaded"
  | "unavailable";

export interface ChatError {
  code: ErrorCode;
  /** For people. */
  message: string;
  /** Milliseconds until another try is worth it; with `rate_limited`. */
  retryAfterMs?: number;
}

export interface Refusal {
  error: ChatError;
}

export interface InitSession {
  sessionId?: string;
  /** The id of the last message that the client has. */
  after?: string;
}

export interface Joined {
  /** The id to keep. */
  sessionId: string;
  resumed: boolean;
  /** What came after `after`. */
  messages: Message[];
  /** `after` is not of this session: `messages` starts at the beginning. */
  reset: boolean;
  /** The rest is in the history over HTTP. */
  more: boolean;
}

export interface NotJoined extends Refusal {
  /** The id that was given. */
  sessionId: string | null;
}

export interface Send {
  sessionId: string;
  content: string;
  /** 1 to 64 characters: of one, one message is stored, however often it is sent. */
  clientOffset?: string;
}

export interface Sent {
  id: string;
  status: "stored" | "accepted";
}

export interface MessageError extends Refusal {
  event: "init_session" | "user_message" | "admin_message" | "admin-connect" | "get-sessions" | "get-all-sessions" | "get-messages"
    | "admin-join-session" | "admin-leave-session" | "toggle-ai-mode" | "claim-session" | "release-session" | "set-status"
    | "get-session" | "mark-read" | "typing";
  sessionId: string | null;
  clientOffset: string | null;
  /** Of a message that was acked as accepted. */
  id?: string;
}

/** A session in the lists of an inbox. */
export interface ListedSession {
  sessionId: string;
  user: string;
  lastMessage: string;
  /** As `09:41 AM`. */
  timestamp: string;
  isActive: boolean;
  createdAt: string;
  lastMessageAt: string | null;
  /** A visitor's message opens a closed one. */
  status: "open" | "closed";
  /** The agent who has claimed it. */
  assignee: string | null;
  /** Whether messages with `isAI: true` are stored. */
  aiEnabled: boolean;
  /** What the visitor said since an agent spoke or read, at most 99. */
  unread: number;
  /** Only of `get-session`: the ids of the messages up to which each side has read. */
  read?: { user: string | null; admin: string | null };
}

export interface SessionsPage {
  sessions: ListedSession[];
  /** The `cursor` of the next page. */
  nextCursor: string | null;
}

/** A message as `messages-history` gives it. */
export interface HistoryMessage {
  id: string;
  message: string;
  isAdmin: boolean;
  isAI: boolean;
  sender: "user" | "admin";
  timestamp: string;
}

export interface InSession {
  sessionId: string;
}

export interface AiMode extends InSession {
  enabled: boolean;
}

export interface Changed {
  session: ListedSession;
}

export interface ClaimRefusal extends Refusal {
  /** With `conflict`: the session as it is. */
  session?: ListedSession;
}

export interface ReadMark extends InSession {
  messageId: string;
}

type Ack<Answer> = (answer: Answer) => void;

export interface ClientToServerEvents {
  init_session(payload: InitSession | null, ack?: Ack<Joined | NotJoined>): void;
  user_message(payload: Send, ack?: Ack<Sent | Refusal>): void;
  admin_message(payload: Send, ack?: Ack<Sent | Refusal>): void;
  "admin-connect"(payload: { deltas?: boolean } | null, ack?: Ack<SessionsPage | Refusal>): void;
  "get-sessions"(ack?: Ack<SessionsPage | Refusal>): void;
  "get-all-sessions"(payload: { limit?: number; cursor?: string } | null, ack?: Ack<SessionsPage | Refusal>): void;
  "get-messages"(payload: InSession & { before?: string }, ack?: Ack<{ messages: HistoryMessage[] } | Refusal>): void;
  "admin-join-session"(payload: InSession, ack?: Ack<InSession | Refusal>): void;
  "admin-leave-session"(payload: InSession, ack?: Ack<InSession | Refusal>): void;
  "toggle-ai-mode"(payload: AiMode, ack?: Ack<AiMode | Refusal>): void;
  "claim-session"(payload: InSession & { agent?: string }, ack?: Ack<Changed | ClaimRefusal>): void;
  "release-session"(payload: InSession, ack?: Ack<Changed | Refusal>): void;
  "set-status"(payload: InSession & { status: "open" | "closed" }, ack?: Ack<Changed | Refusal>): void;
  "get-session"(payload: InSession, ack?: Ack<Changed | Refusal>): void;
  "mark-read"(payload: ReadMark, ack?: Ack<ReadMark | Refusal>): void;
  typing(payload: InSession & { typing: boolean }, ack?: Ack<{} | Refusal>): void;
}

export interface ServerToClientEvents {
  message(message: Message): void;
  message_error(error: MessageError): void;
  "sessions-list"(sessions: ListedSession[]): void;
  "all-sessions-list"(sessions: ListedSession[]): void;
  "messages-history"(messages: HistoryMessage[]): void;
  "new-message"(news: InSession & { message: string }): void;
  "ai-mode-changed"(mode: AiMode): void;
  "session-updated"(updated: Changed): void;
  read(mark: ReadMark & { reader: "user" | "admin" }): void;
  typing(typing: InSession & { sender: "user" | "admin"; typing: boolean }): void;
}
