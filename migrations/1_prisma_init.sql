-- The tables of Prisma's migration 20251212153812_init, made where they are missing. On a database
-- that Prisma made and filled nothing here changes anything; "_prisma_migrations" is not touched.

CREATE TABLE IF NOT EXISTS "ChatSession" (
    "id" TEXT NOT NULL,
    "sessionId" TEXT NOT NULL,
    "ip" TEXT,
    "userAgent" TEXT,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "ChatSession_pkey" PRIMARY KEY ("id")
);

CREATE TABLE IF NOT EXISTS "Message" (
    "id" TEXT NOT NULL,
    "sender" TEXT NOT NULL,
    "content" TEXT NOT NULL,
    "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "isAI" BOOLEAN NOT NULL DEFAULT false,
    "chatSessionId" TEXT NOT NULL,
    CONSTRAINT "Message_pkey" PRIMARY KEY ("id")
);

CREATE UNIQUE INDEX IF NOT EXISTS "ChatSession_sessionId_key" ON "ChatSession" ("sessionId");

DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_constraint
        WHERE conname = 'Message_chatSessionId_fkey' AND conrelid = '"Message"'::regclass
    ) THEN
        ALTER TABLE "Message" ADD CONSTRAINT "Message_chatSessionId_fkey"
            FOREIGN KEY ("chatSessionId") REFERENCES "ChatSession" ("id")
            ON DELETE RESTRICT ON UPDATE CASCADE;
    END IF;
END
$$;
