// The client library; a page loads it with a script element.
import { io } from "socket.io-client";

// Wait for script to load, then connect
setTimeout(() => {
  const socket = io(`http://localhost:${process.env.PORT ?? 4000}`);

  socket.on("connect", () => {
    console.log("Connected!");

    socket.emit("init_session", {}, (response) => {
      console.log("Session:", response.sessionId);

      // Send a test message
      socket.emit("user_message", {
        sessionId: response.sessionId,
        content: "Test from browser!"
      });
    });
  });

  socket.on("message", (msg) => {
    console.log("Message received:", msg);
  });
}, 1000);
