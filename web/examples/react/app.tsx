import { StrictMode, type SubmitEvent } from "react";
import { createRoot } from "react-dom/client";
import { io } from "socket.io-client";
import type { Chat, ShownMessage } from "support-chat-client";
import { useChat } from "support-chat-client/react";

const WORDS = { waiting: "sending …", accepted: "sent", stored: "delivered", refused: "not sent" };

function Conversation({ url }: { url: string }) {
  const { connection, messages, send, retry } = useChat({ url, io });
  const submit = (event: SubmitEvent<HTMLFormElement>) => {
    event.preventDefault();
    const field = event.currentTarget.querySelector("input")!;
    if (field.value.trim()) send(field.value);
    field.value = "";
  };
  return (
    <>
      <p role="status">{connection !== "connected" && "No connection. What you write is sent once there is one."}</p>
      <ol aria-live="polite" aria-label="Conversation">
        {messages.map((message) => (
          <Item key={message.clientOffset ?? message.id} message={message} retry={retry} />
        ))}
      </ol>
      <form onSubmit={submit}>
        <label>
          Message <input name="text" autoComplete="off" required maxLength={8000} />
        </label>
        <button>Send</button>
      </form>
    </>
  );
}

function Item({ message, retry }: { message: ShownMessage; retry: Chat["retry"] }) {
  const { sender, content, state, clientOffset } = message;
  if (sender === "admin") return <li className="answer">{content}</li>;
  return (
    <li className="own">
      {`${content} (${WORDS[state]})`}
      {state === "refused" && clientOffset && <button onClick={() => retry(clientOffset)}>Try again</button>}
    </li>
  );
}

const place = document.getElementById("chat")!;
createRoot(place).render(
  <StrictMode>
    <Conversation url={place.dataset.gateway!} />
  </StrictMode>,
);
