import { useEffect, useState, useSyncExternalStore } from "react";
import { openChat } from "./chat.js";

const CLOSED = {
  state: { connection: "connecting", error: null, sessionId: null, isActive: false, isAI: false, messages: [] },
  subscribe: () => () => {},
};
const closed = () => CLOSED.state;

/** A chat that lives as long as the component: its state, and `send`, `retry` and `discard`. */
export function useChat(options = {}) {
  const [chat, setChat] = useState(CLOSED);
  const { url, socket, io, storage, token } = options;
  useEffect(() => {
    const opened = openChat({ url, socket, io, storage, token });
    setChat(opened);
    return () => opened.close();
    // A token that is renewed is read at the next connection: give a function that stays the same.
  }, [url, socket, io, storage, token]);
  const state = useSyncExternalStore(chat.subscribe, () => chat.state, closed);
  return { ...state, send: chat.send, retry: chat.retry, discard: chat.discard };
}
