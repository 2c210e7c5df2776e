import type { Chat } from "./chat.js";

export interface Signals {
  /** Whether an agent or a program types. */
  readonly isAgentTyping: boolean;
  /** The id of the message up to which an agent said that it has read, if one did since this was opened. */
  readonly agentRead: string | null;
  /** Tells agents that the visitor types, or with `false` that it does not any more. To be called at each key. */
  typing(typing?: boolean): void;
  /** Tells agents that the visitor has read everything that is here. */
  markRead(): void;
  /** Ends it; the chat goes on. */
  close(): void;
}

/** `changed` is called after every change. */
export function openSignals(chat: Chat, changed?: () => void): Signals;
