import type { Chat, ChatOptions, ChatState } from "./chat.js";

export type UsedChat = ChatState & Pick<Chat, "send" | "retry" | "discard">;

/** A chat that lives as long as the component. It is opened again where an option changes. */
export function useChat(options?: ChatOptions): UsedChat;
