"""OpenAI's Files and Batches API: files of requests that are answered in the batch lane, within a day."""
