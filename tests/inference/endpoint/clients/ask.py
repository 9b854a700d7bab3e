"""Asks the model `router` as the README says, with one client and its default API; prints the answer.

python3 ask.py <client> <question>
"""

import asyncio
import sys


def openai_agents(question: str) -> str:
    """The OpenAI agents SDK."""
    from agents import Agent, Runner

    return Runner.run_sync(Agent(name="a", model="router"), question).final_output


def openai_agents_stream(question: str) -> str:
    """The same, as a stream."""
    from agents import Agent, Runner

    async def ask() -> str:
        result = Runner.run_streamed(Agent(name="a", model="router"), question)
        async for _ in result.stream_events():
            pass
        return result.final_output

    return asyncio.run(ask())


def pydantic_ai(question: str) -> str:
    """pydantic-ai."""
    from pydantic_ai import Agent

    return Agent("openai:router").run_sync(question).output


def pydantic_ai_stream(question: str) -> str:
    """The same, as a stream."""
    from pydantic_ai import Agent

    async def ask() -> str:
        async with Agent("openai:router").run_stream(question) as result:
            return await result.get_output()

    return asyncio.run(ask())


def langchain_openai(question: str) -> str:
    """LangChain, by chat completions."""
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model="router").invoke(question).text


def langchain_openai_stream(question: str) -> str:
    """The same, as a stream."""
    from langchain_openai import ChatOpenAI

    return "".join(chunk.text for chunk in ChatOpenAI(model="router").stream(question))


def langchain_anthropic(question: str) -> str:
    """LangChain, by Anthropic's Messages."""
    from langchain_anthropic import ChatAnthropic

    return ChatAnthropic(model="router").invoke(question).text


def langchain_anthropic_stream(question: str) -> str:
    """The same, as a stream."""
    from langchain_anthropic import ChatAnthropic

    return "".join(chunk.text for chunk in ChatAnthropic(model="router").stream(question))


if __name__ == "__main__":
    print(globals()[sys.argv[1]](sys.argv[2]).strip())
