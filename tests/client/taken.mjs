/** Whether an ack says that the message is stored, or in the log and surely will be. */
export const isTaken = (ack) => ["stored", "accepted"].includes(ack?.status);
