// The Node server that this project replaces, as its document has it, but for the database: what it stores is kept in
// memory, in the order in which it came. PORT says where it listens.

import crypto from "node:crypto";
import http from "node:http";
import cors from "cors";
import express from "express";
import { Server } from "socket.io";

const sessions = [];
const cuid = () => `c${crypto.randomBytes(12).toString("hex")}`;

const service = {
  async createChatSession(ip, userAgent) {
    const sessionId = crypto.randomUUID();
    const createdAt = new Date();
    sessions.unshift({ id: cuid(), sessionId, ip: ip ?? null, userAgent: userAgent ?? null, createdAt, messages: [] });
    return sessionId;
  },
  async saveMessage(sessionId, sender, content, isAI = false) {
    // As Prisma: a query without a value to look for, and a row without a text, are errors.
    if (typeof sessionId !== "string") throw new Error("Invalid `prisma.chatSession.findUnique()` invocation");
    const session = sessions.find((one) => one.sessionId === sessionId);
    if (!session) throw new Error("Chat session not found");
    if (typeof content !== "string") throw new Error("Invalid `prisma.message.create()` invocation");
    const message = { id: cuid(), sender, content, createdAt: new Date(), isAI, chatSessionId: session.id };
    session.messages.push(message);
    return message;
  },
  async getMessages(sessionId) {
    return sessions.find((one) => one.sessionId === sessionId)?.messages ?? [];
  },
  async getAllChats() {
    return sessions;
  },
};

const router = express.Router();
router.get("/chats", async (req, res) => { res.json(await service.getAllChats()); });
router.get("/chats/:sessionId", async (req, res) => { res.json(await service.getMessages(req.params.sessionId)); });

const app = express();
app.use(cors());
app.use(express.json());
app.use(express.urlencoded({ extended: true }));
app.get("/health", (req, res) => { res.json({ status: "ok" }); });
app.use("/api", router);

const server = http.createServer(app);
const io = new Server(server, { cors: { origin: "*" } });

io.on("connection", (socket) => {
  socket.on("init_session", async ({ sessionId }, callback) => {
    if (!sessionId) {
      sessionId = await service.createChatSession(socket.handshake.address, socket.handshake.headers["user-agent"]);
    }
    socket.join(sessionId);
    callback({ sessionId });
  });
  socket.on("user_message", async ({ sessionId, content }) => {
    io.to(sessionId).emit("message", await service.saveMessage(sessionId, "user", content));
  });
  socket.on("admin_message", async ({ sessionId, content }) => {
    io.to(sessionId).emit("message", await service.saveMessage(sessionId, "admin", content));
  });
});

server.listen(process.env.PORT, "127.0.0.1", () => console.log("listening on", server.address().port));
