-- Sessions that were erased. What the log still holds of one, or may be sent again, must not bring it
-- back; nothing here tells whose it was.

CREATE TABLE "ErasedSession" (
    "digest" BYTEA PRIMARY KEY,
    "logEpoch" BIGINT NOT NULL,
    "erasedSequence" BIGINT NOT NULL,
    "lastSequence" BIGINT NOT NULL,
    "clearedSequence" BIGINT NOT NULL DEFAULT 0,
    "erasedAt" TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE "ErasedSession" IS 'Sessions whose records are not stored any more';
COMMENT ON COLUMN "ErasedSession"."digest" IS 'SHA-256 of the id in the subject of its records';
COMMENT ON COLUMN "ErasedSession"."logEpoch" IS 'Epoch of its partition in which the sequences count';
COMMENT ON COLUMN "ErasedSession"."erasedSequence" IS 'Stream sequence of the record that erased it; 0 if this log has none';
COMMENT ON COLUMN "ErasedSession"."lastSequence" IS 'Stream sequence of its last record that was read';
COMMENT ON COLUMN "ErasedSession"."clearedSequence" IS 'Up to here the log holds nothing of it but the record that erased it';
COMMENT ON COLUMN "ErasedSession"."erasedAt" IS 'When the log took the record that erased it';

-- Gateways read here which ends they were not told of.
CREATE INDEX "ErasedSession_log_idx" ON "ErasedSession" ("logEpoch", "lastSequence");
CREATE INDEX "ErasedSession_uncleared_idx" ON "ErasedSession" ("lastSequence")
    WHERE "clearedSequence" < "lastSequence";
-- An erasure takes the session's dead letters with it, whatever their partition was.
CREATE INDEX "DeadLetter_session_idx" ON "DeadLetter" (split_part("subject", '.', 4));
