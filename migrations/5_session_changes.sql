-- Who answers a session, whether an AI may, and what of it was read; and what the feed of all sessions is read by.
-- Everything added to Prisma's tables has a default or may be null. A persister of before stores messages as before;
-- gateways put changes into the log only where no such persister lives.

ALTER TABLE "ChatSession"
    ADD COLUMN "status" TEXT NOT NULL DEFAULT 'open',
    ADD COLUMN "assignee" TEXT,
    ADD COLUMN "aiEnabled" BOOLEAN NOT NULL DEFAULT true,
    ADD COLUMN "userReadSeq" BIGINT,
    ADD COLUMN "adminReadSeq" BIGINT,
    ADD COLUMN "logEpoch" BIGINT,
    ADD COLUMN "logSequence" BIGINT;
COMMENT ON COLUMN "ChatSession"."status" IS 'open or closed; a visitor''s message opens it again';
COMMENT ON COLUMN "ChatSession"."assignee" IS 'The agent who claimed it';
COMMENT ON COLUMN "ChatSession"."aiEnabled" IS 'Whether messages of an AI are stored';
COMMENT ON COLUMN "ChatSession"."userReadSeq" IS '"seq" of the last message that the visitor has read';
COMMENT ON COLUMN "ChatSession"."adminReadSeq" IS '"seq" of the last message that an agent has read';
COMMENT ON COLUMN "ChatSession"."logEpoch" IS
    'Epoch of the partition in whose log the record stood that opened it; null if it did not come through the log';
COMMENT ON COLUMN "ChatSession"."logSequence" IS 'Stream sequence of that record';

-- The feed reads here which sessions are new.
CREATE INDEX "ChatSession_log_idx" ON "ChatSession" ("logEpoch", "logSequence") WHERE "logEpoch" IS NOT NULL;

CREATE TABLE "SessionChange" (
    "id" TEXT PRIMARY KEY,
    "chatSessionId" TEXT NOT NULL,
    "isApplied" BOOLEAN NOT NULL,
    "status" TEXT,
    "aiEnabled" BOOLEAN,
    "assignee" TEXT,
    "isRelease" BOOLEAN NOT NULL DEFAULT false,
    "createdAt" TIMESTAMP(3) NOT NULL,
    "logEpoch" BIGINT NOT NULL,
    "logSequence" BIGINT NOT NULL
);
COMMENT ON TABLE "SessionChange" IS 'What was changed about sessions beside their messages, in the order of the log';
COMMENT ON COLUMN "SessionChange"."id" IS 'The same change counts once; of a message that opened a closed session, the message''s';
COMMENT ON COLUMN "SessionChange"."chatSessionId" IS 'The key of its session''s row';
COMMENT ON COLUMN "SessionChange"."isApplied" IS 'False if somebody else had claimed the session before: then nothing of it counts';
COMMENT ON COLUMN "SessionChange"."status" IS 'What it set, if it did';
COMMENT ON COLUMN "SessionChange"."aiEnabled" IS 'What it set, if it did';
COMMENT ON COLUMN "SessionChange"."assignee" IS 'Who claimed the session by it';
COMMENT ON COLUMN "SessionChange"."isRelease" IS 'Whether the session is nobody''s from there on';
COMMENT ON COLUMN "SessionChange"."createdAt" IS 'When the log took it';
COMMENT ON COLUMN "SessionChange"."logEpoch" IS 'Epoch of its partition';
COMMENT ON COLUMN "SessionChange"."logSequence" IS 'Its stream sequence';
CREATE UNIQUE INDEX "SessionChange_log_key" ON "SessionChange" ("logEpoch", "logSequence");
CREATE INDEX "SessionChange_chatSessionId_idx" ON "SessionChange" ("chatSessionId");

CREATE TABLE "RefusedMessage" (
    "id" TEXT NOT NULL,
    "recordedAt" TIMESTAMPTZ NOT NULL,
    "chatSessionId" TEXT NOT NULL,
    PRIMARY KEY ("id", "recordedAt")
);
COMMENT ON TABLE "RefusedMessage" IS
    'Messages of an AI that stand in the log behind where it was switched off: a log that is read again must not store them';
COMMENT ON COLUMN "RefusedMessage"."id" IS 'The message''s; what it said is not kept';
COMMENT ON COLUMN "RefusedMessage"."chatSessionId" IS 'The key of its session''s row';
COMMENT ON COLUMN "RefusedMessage"."recordedAt" IS 'When the log took it: sent again later, it is decided anew';
CREATE INDEX "RefusedMessage_chatSessionId_idx" ON "RefusedMessage" ("chatSessionId");

-- What was decided goes with the session, whoever deletes it. Foreign keys would do the same, and would refuse a TRUNCATE
-- that names Prisma's tables alone.
DO $$
DECLARE
    place CONSTANT TEXT := current_schema();
BEGIN
    EXECUTE format($body$
        CREATE FUNCTION %1$I."forget_deleted_session"() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $trigger$
        BEGIN
            DELETE FROM %1$I."SessionChange" WHERE "chatSessionId" = OLD."id";
            DELETE FROM %1$I."RefusedMessage" WHERE "chatSessionId" = OLD."id";
            RETURN NULL;
        END
        $trigger$
    $body$, place);
    EXECUTE format($body$
        CREATE FUNCTION %1$I."forget_all_sessions"() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $trigger$
        BEGIN
            TRUNCATE %1$I."SessionChange", %1$I."RefusedMessage";
            RETURN NULL;
        END
        $trigger$
    $body$, place);
    EXECUTE format('REVOKE EXECUTE ON FUNCTION %1$I."forget_deleted_session"(), %1$I."forget_all_sessions"() FROM PUBLIC', place);
    EXECUTE format(
        'CREATE TRIGGER "ChatSession_forgotten" AFTER DELETE ON %1$I."ChatSession"
         FOR EACH ROW EXECUTE FUNCTION %1$I."forget_deleted_session"()', place);
    EXECUTE format(
        'CREATE TRIGGER "ChatSession_emptied" AFTER TRUNCATE ON %1$I."ChatSession"
         FOR EACH STATEMENT EXECUTE FUNCTION %1$I."forget_all_sessions"()', place);
END
$$;

ALTER TABLE "Worker" ADD COLUMN "version" BIGINT NOT NULL DEFAULT 4;
COMMENT ON COLUMN "Worker"."version" IS 'The migration that it was built with: what records it knows';
