"""``llmkd report``: what runs and studies have found, as one page that needs nothing beside itself."""
