"""What several admin endpoints take."""

from typing import Annotated

from litestar.params import PathParameter, QueryParameter

Filter = Annotated[str, QueryParameter(max_length=128)]
Flag = Annotated[bool, QueryParameter()]
AccountId = Annotated[str, QueryParameter(max_length=64)]
# What a database takes as a number: 32 bits where rows are few, 64 elsewhere.
Version = Annotated[int, PathParameter(ge=0, le=2**31 - 1)]
VersionAsked = Annotated[int, QueryParameter(ge=0, le=2**31 - 1)]
RowNumber = Annotated[int, PathParameter(ge=0, le=2**53 - 1)]
