"""Token ids in place of texts: accepted with a warning, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import bad_request

if TYPE_CHECKING:
    from ..service import Service


def check_token_ids(service: Service, field: str) -> None:
    """Refuse token ids if the settings say so. Otherwise warn once, because ids of another vocabulary look the same."""
    if service.config.token_ids == "refuse":
        raise bad_request(
            f"{field} holds token ids, which this server does not accept: send texts. LangChain's OpenAIEmbeddings "
            "sends texts with check_embedding_ctx_length=False",
            field,
            "token_ids_refused",
        )
    service.warn_once(
        "token_ids",
        "A client sends token ids. They are read as ids of the served model's own vocabulary. Ids of another one give "
        "wrong answers, such as those that LangChain's OpenAIEmbeddings makes without "
        "check_embedding_ctx_length=False. MODEL_MANAGER_SERVER_TOKEN_IDS=refuse refuses all ids",
    )
